"""Settings of mining: which hits become negatives, of which retriever, and who scores them. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from retrieval.config import AnyRetriever
from sleuth.settings import Count, Settings, Share


class FilterSettings(Settings):
    """Which hits of a search become negatives. Golds never do, under any id."""

    negatives: Count = 7
    """Kept for a query; fewer where fewer are left."""
    first_rank: Count = 1
    last_rank: Count = 50
    """Window of ranks searched, from 1, both included."""
    margin: Annotated[float, Field(ge=0)] | None = None
    """A hit must score this much below the weakest gold found. Where none was found, all hits outscore the golds: none
    is kept, and the row is counted."""
    relative_margin: Share | None = None
    """A hit must score below (1 - this) times the weakest gold found, where that is positive."""
    drop_answers: bool = False
    """Leave out hits that hold an answer of the row; yes and no are no such answers."""
    sampling: Literal["top", "random"] = "top"
    seed: int = 0

    @model_validator(mode="after")
    def _window(self) -> FilterSettings:
        if self.last_rank < self.first_rank:
            raise ValueError(f"last_rank {self.last_rank} is before first_rank {self.first_rank}")
        return self


class MiningSettings(FilterSettings):
    """Hard negatives by a search for each training query."""

    retriever: AnyRetriever
    batch_size: Count = 128
    keep_given: bool = True
    """Keep the negatives that rows have already, after the mined ones."""
    teacher: AnyRetriever | None = None
    """Scores every passage of the rows, for ``training.distillation``: a reranker or an encoder all of them, any other
    retriever those it finds. ``{model: FOLDER}`` stands for a reranker of the retriever mined from."""
    teacher_depth: Count = 200
    """Hits looked through for a passage, where the teacher is neither reranker nor encoder."""

    @model_validator(mode="before")
    @classmethod
    def _reranker_of_the_same(cls, value: Any) -> Any:
        teacher = value.get("teacher") if isinstance(value, Mapping) else None
        if not isinstance(teacher, Mapping) or "model" not in teacher or "kind" in teacher or "inner" in teacher:
            return value
        return {**value, "teacher": {"kind": "rerank", "inner": value.get("retriever"), **teacher}}
