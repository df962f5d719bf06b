"""Words and n-grams of texts, for comparing them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
"""A letter of a script that writes no spaces between words, as a regular expression."""
_WORD = regex.compile(rf"{UNSPACED}|[\p{{L}}\p{{N}}\p{{M}}--{UNSPACED}]+", regex.V1)


def words_of(text: str) -> list[str]:
    """Words in lower case without punctuation; a letter of a script without spaces is a word."""
    return [str(word) for word in _WORD.findall(unicodedata.normalize("NFKC", text).lower())]


def same_words(one: str, other: str) -> bool:
    """Whether two texts differ in case, punctuation and space at most; of texts without words, in nothing."""
    words = words_of(one)
    return words == words_of(other) and (bool(words) or one == other)


def ngrams(words: Sequence[str], length: int) -> frozenset[str]:
    """Every run of ``length`` words; of fewer words, all of them as one."""
    if not words:
        return frozenset()
    last = max(1, len(words) - length + 1)
    return frozenset(" ".join(words[start : start + length]) for start in range(last))
