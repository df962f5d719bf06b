"""The number of passages of a retriever, and of hits that it gives, if it reports them."""

from __future__ import annotations

from collections.abc import Sized

from sleuth.protocols import Retriever


def size_of(retriever: Retriever) -> int | None:
    """How many passages ``retriever`` searches; None if it does not say."""
    if isinstance(retriever, Sized):
        return len(retriever)
    passages = getattr(retriever, "passages", None)
    return passages if isinstance(passages, int) else None


def limit_of(retriever: Retriever) -> int | None:
    """How many hits of a query ``retriever`` gives at most, as a service may say; None if it does not."""
    limit = getattr(retriever, "most_hits", None)
    return limit if isinstance(limit, int) else None
