"""Vectors: an index of Sleuth's own, or a faiss file that others made; settings, and how they are opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from retrieval.config import Count, Progress, RetrieverSettings
from retrieval.encoders.config import AnyEncoder
from retrieval.encoders.index_config import EncodedIndexSettings
from sleuth.protocols import Retriever


class DenseSettings(EncodedIndexSettings):
    INDEX: ClassVar[str] = "retrieval.dense.retriever:DENSE_INDEX"
    MADE: ClassVar[Mapping[str, object]] = {"index_type": "flat", "dtype": "float32"}

    kind: Literal["dense"] = "dense"
    index_type: Literal["flat", "hnsw", "ivfpq"] | None = None
    """What the index is, or how one that does not exist yet is made; None: as it is, flat for a new one."""
    dtype: Literal["float32", "float16", "int8"] | None = None
    """How it keeps its vectors; None: as it does, float32 for a new one."""
    ef_search: Count | None = None
    """HNSW: candidates looked at by a search; None: as the index was built."""
    nprobe: Count | None = None
    """IVF: cells looked at by a search; None: as the index was built."""


class FaissSettings(RetrieverSettings):
    kind: Literal["faiss"] = "faiss"
    faiss_file: Path
    """An index that others made; its vector i belongs to row i of ``corpus``."""
    corpus: Path
    encoder: AnyEncoder
    """What made the vectors."""
    ef_search: Count | None = None
    """HNSW: candidates looked at by a search; None: as the index was built."""
    nprobe: Count | None = None
    """IVF: cells looked at by a search; None: as the index was built."""

    @property
    def at_hand(self) -> bool:
        return True

    def open(self, _progress: Progress, /) -> Retriever:
        from retrieval.dense.published import open_published
        from retrieval.encoders.loading import open_encoder

        tuning = {"ef_search": self.ef_search, "nprobe": self.nprobe}
        return open_published(self.faiss_file, self.corpus, open_encoder(self.encoder), **tuning)
