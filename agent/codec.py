"""A tokenizer as a ``TextCodec``: our own text may use special tokens, outside text may not."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.seams import Seam, decode_all, encode_plain, find_seam
from sleuth.errors import ConfigError, PolicyError, first_line
from sleuth.reserved import TAG_STRINGS, is_markup

_SAID = "sleuthhassaid"


class HFCodec:
    """A transformers tokenizer as a ``TextCodec``.

    Untrusted text is encoded with special tokens switched off, and any reserved id that still results is dropped:
    dropping a token id, unlike deleting text, cannot create a new special token. The protocol's own tags may be special
    tokens of the tokenizer: they are decoded like any text, while other special tokens have none.

    Text and tokens agree at seams: a piece gets no space that it does not have, and loses none. After a control token
    inside trusted text, such as a chat template's ``[INST]``, the tokenizer's own custom holds.

    ``end_token_ids`` are those that the model's settings name beside the tokenizer's EOS; the end of a message in the
    chat template is added, which a base model's EOS is often not.
    """

    def __init__(self, tokenizer: Any, end_token_ids: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        if tokenizer.eos_token_id is None:
            raise PolicyError(
                f"the tokenizer of {tokenizer.name_or_path} has no EOS token",
                "add an eos_token to its tokenizer_config.json",
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token  # harmless: masks are never derived from pad ids
        self.eos_token_id: int = tokenizer.eos_token_id
        self.pad_token_id: int = tokenizer.pad_token_id
        self.end_token_ids: tuple[int, ...] = tuple(
            dict.fromkeys([self.eos_token_id, *end_token_ids, *_message_end(tokenizer)])
        )
        added: dict[str, int] = tokenizer.get_added_vocab()
        self.reserved: frozenset[str] = frozenset(added) | frozenset(tokenizer.all_special_tokens)
        self._added = frozenset(added.values()) | frozenset(tokenizer.all_special_ids)
        self._tags = frozenset(added[tag] for tag in TAG_STRINGS if tag in added)
        self.bos: str = _bos(tokenizer)

    def encode(self, text: str, *, trusted: bool = False) -> list[int]:
        ids = [token for part in self._parts(text, trusted) for token in part]
        return ids if trusted else [token for token in ids if token not in self._forbidden]

    def decode(self, token_ids: Sequence[int]) -> str:
        ids = [token for token in token_ids if token not in self._special or token in self._tags]
        if self._seam is not None:
            text = decode_all(self.tokenizer, [*self._seam.token_ids, *ids])
            if text.startswith(self._seam.shown):  # not where its bytes joined those of a broken character
                return text.removeprefix(self._seam.shown)
        return decode_all(self.tokenizer, ids)

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any] | None = None
    ) -> str | None:
        """Raises ConfigError if the template refuses the messages."""
        from jinja2 import TemplateError

        if not self.tokenizer.chat_template:
            return None
        try:
            text: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=True,
                **(variables or {}),
            )
        except TemplateError as error:
            raise ConfigError(
                f"the tokenizer's chat template refuses the messages: {first_line(error)}",
                "see environment.system and environment.chat_template_kwargs, or set environment.chat: never",
            ) from error
        return text

    def save(self, folder: str | Path) -> None:
        """Write what ``load_codec`` reads."""
        self.tokenizer.save_pretrained(folder)

    @property
    def special_tags(self) -> bool:
        """Whether a tag of the protocol is a special token, which servers leave out of their text unless asked."""
        return not self._special.isdisjoint(self._tags)

    @functools.cached_property
    def _special(self) -> frozenset[int]:
        """Control tokens and special tags. Some converters count a line break among ``all_special_ids``."""
        added = self.tokenizer.added_tokens_decoder
        text = {token for token, known in added.items() if not known.special} - {self.eos_token_id, self.pad_token_id}
        return frozenset({*added, *self.tokenizer.all_special_ids} - text)

    @functools.cached_property
    def _forbidden(self) -> frozenset[int]:
        """What outside text may not become."""
        markup = (token for string, token in self.tokenizer.get_added_vocab().items() if is_markup(string))
        unknown = self.tokenizer.unk_token_id
        return frozenset({*markup, *self._special} - ({unknown} if unknown != self.eos_token_id else set()))

    @functools.cached_property
    def _words(self) -> dict[str, int]:
        """Added tokens that are text: the protocol's tags and what is not special."""
        control = self._special - self._tags
        return {string: i for string, i in self.tokenizer.get_added_vocab().items() if i not in control}

    @functools.cached_property
    def _seam(self) -> Seam | None:
        return find_seam(self.tokenizer)

    def _parts(self, text: str, trusted: bool) -> Iterator[list[int]]:
        """The tokens of ``text``. At added tokens it is split here: a tokenizer that puts a space at the start of a
        text may put one after each of them too.
        """
        words = {w: i for w, i in self._words.items() if trusted or i not in self._forbidden} if self._seam else {}
        for part in re.split(f"({'|'.join(map(re.escape, words))})", text) if words else [text]:
            yield [words[part]] if part in words else self._piece(part, trusted)

    def _piece(self, text: str, trusted: bool) -> list[int]:
        """``text`` as if other text stood before it; a control token at its start is a start of its own."""
        ids = encode_plain(self.tokenizer, text, split_special=not trusted)
        if self._seam is None or not ids or (trusted and ids[0] in self._added):
            return ids
        whole = encode_plain(self.tokenizer, self._seam.text + text, split_special=not trusted)
        length = len(self._seam.token_ids)
        return whole[length:] if tuple(whole[:length]) == self._seam.token_ids else ids


def _message_end(tokenizer: Any) -> list[int]:
    """The control token that the chat template writes after the assistant's words; empty if it writes none."""
    if not tokenizer.chat_template:
        return []
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": _SAID},
        {"role": "user", "content": "a"},
    ]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    except Exception:  # noqa: BLE001 (templates raise what they like; a chat that is asked for reports it)
        return []
    after = text.partition(_SAID)[2].lstrip()
    known = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    token = max((string for string in known if after.startswith(string)), key=len, default="")
    return [known[token]] if token else []


def _bos(tokenizer: Any) -> str:
    """What has to stand before a text for it to be encoded as the tokenizer does by itself; empty if it adds nothing.

    A space after the token stands for the one that some tokenizers put at the start of a text only.
    """
    if tokenizer.bos_token_id is None:
        return ""
    start = tokenizer("a", add_special_tokens=True)["input_ids"]
    if start[:1] != [tokenizer.bos_token_id]:
        return ""
    token: str = tokenizer.bos_token
    whole = encode_plain(tokenizer, f"{token} a", split_special=False)
    plain = encode_plain(tokenizer, f"{token}a", split_special=False)
    return f"{token} " if whole == start != plain else token
