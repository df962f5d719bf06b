"""What models read of a passage."""

from __future__ import annotations

from sleuth.types import Passage


def passage_text(passage: Passage) -> str:
    """What an encoder or a reranker reads of a passage: title, a space, text."""
    return f"{passage.title} {passage.text}" if passage.title else passage.text
