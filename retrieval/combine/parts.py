"""What fusing and reranking share: how deep to ask an inner retriever, and one name for the whole."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from retrieval.size import size_of
from sleuth.errors import ConfigError
from sleuth.protocols import Retriever

HYBRID_DEPTH = 100
RERANK_DEPTH = 50
"""Hits that are fused or ranked again where ``depth`` does not say."""


def reach(retriever: Retriever, depth: int) -> int:
    """``depth``, or all passages of a smaller index."""
    size = size_of(retriever)
    return depth if size is None else min(depth, size)


def check_depth(depth: int) -> None:
    if depth < 1:
        raise ConfigError(f"depth is {depth}, it must be 1 or more")


def check_asked(k: int, passages: int | None) -> None:
    """Raise ConfigError when ``k`` hits cannot be had from so many passages."""
    if k < 1:
        raise ConfigError(f"k is {k}, it must be 1 or more")
    if passages is not None and k > passages:
        raise ConfigError(f"k is {k}, but there are only {passages} passages", f"ask for at most {passages}")


def digest(identity: dict[str, Any]) -> str:
    """A fingerprint of plain values."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
