"""What models read of a passage, and what tells one from another."""

from __future__ import annotations

from sleuth.types import Passage


def passage_text(passage: Passage) -> str:
    """The input of an encoder or a reranker: title, a space, text."""
    return f"{passage.title} {passage.text}" if passage.title and passage.text else passage.title or passage.text


def content_key(passage: Passage) -> str:
    """Equal for passages with equal title, text and picture, whatever their ids."""
    key = f"{passage.title}\x1f{passage.text}"
    return key if passage.image is None else f"{key}\x1f{passage.image.sha256}"
