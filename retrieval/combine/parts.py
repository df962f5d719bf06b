"""What fusing and reranking share: the depth to which an inner retriever is searched."""

from __future__ import annotations

from retrieval.size import size_of
from sleuth.errors import ConfigError
from sleuth.protocols import Retriever

HYBRID_DEPTH = 100
RERANK_DEPTH = 50
"""Hits that are fused or ranked again where ``depth`` does not say."""


def reach(retriever: Retriever, depth: int) -> int:
    """``depth``, or the number of passages of a smaller index."""
    size = size_of(retriever)
    return depth if size is None else min(depth, size)


def check_depth(depth: int) -> None:
    if depth < 1:
        raise ConfigError(f"depth is {depth}, it must be 1 or more")
