"""The number of passages of a retriever, if it reports one."""

from __future__ import annotations

from collections.abc import Sized

from sleuth.protocols import Retriever


def size_of(retriever: Retriever) -> int | None:
    """How many passages ``retriever`` searches; None if it does not say."""
    if isinstance(retriever, Sized):
        return len(retriever)
    passages = getattr(retriever, "passages", None)
    return passages if isinstance(passages, int) else None
