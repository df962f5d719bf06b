"""The text of a passage as models read it."""

from __future__ import annotations

from sleuth.types import Passage


def passage_text(passage: Passage) -> str:
    """The input of an encoder or a reranker: title, a space, text."""
    return f"{passage.title} {passage.text}" if passage.title else passage.text
