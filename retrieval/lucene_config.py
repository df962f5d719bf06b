"""A Lucene index that others made: its settings, and how they are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from retrieval.config import Count, NotNegative, Progress, RetrieverSettings
from sleuth.protocols import Retriever


class LuceneSettings(RetrieverSettings):
    kind: Literal["lucene"] = "lucene"
    index: Path
    """Folder of the index, made with the raw documents in it (``-storeRaw``)."""
    k1: NotNegative | None = None
    """BM25 term saturation; None: Anserini's default."""
    b: Annotated[float, Field(ge=0, le=1)] | None = None
    """BM25 length normalisation; None: Anserini's default."""
    threads: Count = 2

    @property
    def name(self) -> str:
        return str(self.index)

    @property
    def at_hand(self) -> bool:
        return True

    def open(self, _progress: Progress, /) -> Retriever:
        from retrieval.lucene import LuceneRetriever

        return LuceneRetriever(self.index, k1=self.k1, b=self.b, threads=self.threads)
