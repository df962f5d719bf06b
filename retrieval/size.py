"""How many passages a retriever searches, where it tells."""

from __future__ import annotations

from collections.abc import Sized

from sleuth.protocols import Retriever


def size_of(retriever: Retriever) -> int | None:
    """How many passages ``retriever`` searches; None when it does not tell."""
    if isinstance(retriever, Sized):
        return len(retriever)
    passages = getattr(retriever, "passages", None)
    return passages if isinstance(passages, int) else None
