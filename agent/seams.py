"""Where pieces of text meet: tokenizers of the SentencePiece family treat the start of a text as the start of a word.

They put a space (``▁``) before a text when they encode it, and drop one when they decode. Pieces that are encoded one
by one would get a space at every seam, and a turn that is decoded alone would lose its own. A *seam* is a short text
that is put before a piece and cut off again; it takes the place of the start.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_STARTS = ("▁", "Ġ")
"""How vocabularies write a space, in SentencePiece's and in GPT-2's way."""
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_TRIED = 64
_PRIVATE = "\ue000"
"""A character without meaning: bytes, where a vocabulary has them."""


@dataclass(frozen=True, slots=True)
class Seam:
    """``text`` is encoded as ``token_ids`` whatever follows it, and these decode to ``shown``."""

    text: str
    token_ids: tuple[int, ...]
    shown: str


def find_seam(tokenizer: Any) -> Seam | None:
    """A seam of ``tokenizer``; None if it adds no space, or if none of the characters tried is one."""
    first = tokenizer.convert_ids_to_tokens(encode_plain(tokenizer, "a")[:1])
    if not first or not str(first[0]).startswith(_STARTS):
        return None
    pieces = [piece for piece in _pieces(tokenizer) if not _BYTE.fullmatch(piece)]
    followed = set().union(*(piece[:-1] for piece in pieces))
    for text in itertools.islice(_candidates(tokenizer, pieces, followed), _TRIED):
        ids = encode_plain(tokenizer, text)
        last = tokenizer.convert_ids_to_tokens(ids[-1:])
        if not last or tokenizer.unk_token_id in ids:
            continue
        # No token goes on after the seam's last character, so that nothing can merge across it.
        alone = bool(_BYTE.fullmatch(last[0])) or last[0][-1] not in followed
        shown = decode_all(tokenizer, ids)
        if alone and shown.lstrip(" ") == text:
            return Seam(text, tuple(ids), shown)
    return None


def encode_plain(tokenizer: Any, text: str, *, split_special: bool = True) -> list[int]:
    """The tokenizer's own encoding, without the tokens that it puts around a text."""
    ids: list[int] = tokenizer(
        text, add_special_tokens=False, split_special_tokens=split_special, return_attention_mask=False
    )["input_ids"]
    return ids


def decode_all(tokenizer: Any, token_ids: list[int]) -> str:
    """The tokenizer's own decoding, special tokens included, nothing tidied up."""
    text: str = tokenizer.decode(token_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _pieces(tokenizer: Any) -> list[str]:
    """The vocabulary in order of ids, without added tokens."""
    added = tokenizer.get_added_vocab()
    vocabulary = {piece: i for piece, i in tokenizer.get_vocab().items() if piece not in added}
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _candidates(tokenizer: Any, pieces: list[str], followed: set[str]) -> Iterator[str]:
    """Single characters that are a token of their own and start no other; at last one that is spelt in bytes.

    Bytes come last because decoders join them to the bytes of a broken character that follows.
    """
    for piece in pieces:
        if len(piece) == 1 and piece not in followed and piece not in _STARTS:
            text = decode_all(tokenizer, [tokenizer.convert_tokens_to_ids(piece)])
            if len(text) == 1 and text.isprintable() and not text.isspace() and text != "\ufffd":
                yield text
    yield _PRIVATE
