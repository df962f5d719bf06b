"""Retrievers made of other retrievers: their settings, and how they are opened."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from retrieval.combine.parts import HYBRID_DEPTH, RERANK_DEPTH
from retrieval.config import AnyRetriever, Count, NotNegative, Progress, RetrieverSettings
from retrieval.rerankers.config import ScorerSettings
from sleuth.protocols import Retriever


def _as_part(part: RetrieverSettings) -> RetrieverSettings:
    """What all kinds share is set once, for the whole retriever."""
    fields = RetrieverSettings.model_fields
    names = sorted(fields.keys() - {"kind"} - part.KEPT_IN_A_PART)
    lost = next((name for name in names if getattr(part, name) != fields[name].default), None)
    if lost:
        raise ValueError(f"{lost} of a part does nothing; set it for the whole retriever")
    return part


Part = Annotated[AnyRetriever, AfterValidator(_as_part)]


class HybridSettings(RetrieverSettings):
    kind: Literal["hybrid"] = "hybrid"
    parts: Annotated[list[Part], Field(min_length=1)]
    """The retrievers whose hits are fused."""
    fusion: Literal["rrf", "sum", "dpr"] = "rrf"
    """By reciprocal rank, by normalised weighted sum, or as DPR does: BM25 + 1.1 * dense."""
    weights: list[NotNegative] | None = None
    """One a part; None: equal ones, and 1 and 1.1 for dpr."""
    rrf_k: NotNegative = 60.0
    """The constant of reciprocal-rank fusion."""
    depth: Count | None = None
    """Hits asked of each part; None: 100. No more than those are returned."""

    @property
    def inside(self) -> Sequence[RetrieverSettings]:
        return self.parts

    @property
    def most_hits(self) -> int | None:
        deepest = max((part.most_hits or sys.maxsize for part in self.parts), default=sys.maxsize)
        return min(self.depth or HYBRID_DEPTH, deepest)

    def open(self, progress: Progress, /) -> Retriever:
        from retrieval.combine.hybrid import HybridRetriever, check_parameters

        depth = self.depth or HYBRID_DEPTH
        check_parameters(len(self.parts), self.fusion, self.weights, self.rrf_k, depth)
        parts = [part.open(progress) for part in self.parts]
        return HybridRetriever(parts, fusion=self.fusion, weights=self.weights, rrf_k=self.rrf_k, depth=depth)


class RerankSettings(ScorerSettings, RetrieverSettings):
    kind: Literal["rerank"] = "rerank"
    inner: Part
    """The retriever whose hits are ranked again."""
    depth: Count | None = None
    """Hits ranked again; None: 50. No more than those are returned."""
    ensemble: list[ScorerSettings] = Field(default_factory=list)
    """Further models; hits are ranked by the mean of all scores."""

    @property
    def inside(self) -> Sequence[RetrieverSettings]:
        return (self.inner,)

    @property
    def usual_patience_s(self) -> float:
        return 900.0  # the model reads every pair

    @property
    def most_hits(self) -> int | None:
        return min(self.depth or RERANK_DEPTH, self.inner.most_hits or sys.maxsize)

    def open(self, progress: Progress, /) -> Retriever:
        from retrieval.combine.rerank import RerankRetriever

        inner, scorer = self.inner.open(progress), self.open_scorer()
        if self.ensemble:
            from retrieval.rerankers.scorer import MeanScorer

            scorer = MeanScorer([scorer, *(one.open_scorer() for one in self.ensemble)])
        return RerankRetriever(inner, scorer, depth=self.depth or RERANK_DEPTH)
