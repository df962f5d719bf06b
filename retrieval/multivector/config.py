"""Token vectors: exact, as residuals to centroids, or behind vectors of fixed dimension; settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from retrieval.encoders.index_config import EncodedIndexSettings


class MultiVectorSettings(EncodedIndexSettings):
    INDEX: ClassVar[str] = "retrieval.multivector.retriever:MULTIVECTOR_INDEX"
    MADE: ClassVar[Mapping[str, object]] = {"index_type": "flat", "dtype": None}

    kind: Literal["multivector"] = "multivector"
    index_type: Literal["flat"] | None = None
    """What the index is, or how one that does not exist yet is made; None: as it is, flat for a new one."""
    dtype: Literal["float32", "float16"] | None = None
    """flat: how it keeps its vectors; None: as it does, float32 for a new one."""
