"""A tokenizer as a ``TextCodec``: our own text may use special tokens, outside text may not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sleuth.errors import PolicyError
from sleuth.reserved import is_markup


class HFCodec:
    """A transformers tokenizer as a ``TextCodec``.

    Untrusted text is encoded with special tokens switched off, and any reserved id that still results is dropped:
    dropping a token id, unlike deleting text, cannot create a new special token. ``end_token_ids`` are those that the
    model's settings name beside the tokenizer's EOS.
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
        self.end_token_ids: tuple[int, ...] = tuple(dict.fromkeys([self.eos_token_id, *end_token_ids]))
        added: dict[str, int] = tokenizer.get_added_vocab()
        self.reserved: frozenset[str] = frozenset(added) | frozenset(tokenizer.all_special_tokens)
        unknown = tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None
        markup = (token for string, token in added.items() if is_markup(string))
        self._forbidden = frozenset({*markup, *tokenizer.all_special_ids} - {unknown})

        bos = tokenizer.bos_token_id
        adds = bos is not None and tokenizer("a", add_special_tokens=True)["input_ids"][:1] == [bos]
        self.bos: str = tokenizer.bos_token if adds else ""

    def encode(self, text: str, *, trusted: bool = False) -> list[int]:
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=False, split_special_tokens=not trusted, return_attention_mask=False
        )["input_ids"]
        return ids if trusted else [token for token in ids if token not in self._forbidden]

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        if not self.tokenizer.chat_template:
            return None
        text: str = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        )
        return text
