"""Settings of an index of learned sparse weights, and how it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from retrieval.encoders.index_config import EncodedIndexSettings


class SparseSettings(EncodedIndexSettings):
    INDEX: ClassVar[str] = "retrieval.sparse.retriever:SPARSE_INDEX"
    MADE: ClassVar[Mapping[str, object]] = {"weights": "uint8"}

    kind: Literal["sparse"] = "sparse"
    weights: Literal["uint8", "float32"] | None = None
    """How it keeps its weights; None: as it does, uint8 for a new one."""
