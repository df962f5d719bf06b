"""When two texts name the same thing: what rewards, evaluation and retrieval measures share."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_TOKEN = re.compile(r"[^\W_]+|[^\w\s]|_")


def normalise_title(title: str) -> str:
    """Titles are equal whatever their case, spacing, underscores and Unicode composition."""
    return " ".join(unicodedata.normalize("NFC", title).casefold().replace("_", " ").split())


def has_answer(text: str, answers: Sequence[str]) -> bool:
    """True when the tokens of any answer stand in ``text`` side by side, whatever their case.

    After DPR's ``has_answer``: letters and digits form tokens, so ``art`` is not in ``party``.
    """
    haystack = f" {_tokens(text)} "
    return any(f" {needle} " in haystack for needle in map(_tokens, answers) if needle)


def _tokens(text: str) -> str:
    return " ".join(_TOKEN.findall(unicodedata.normalize("NFC", text).casefold()))
