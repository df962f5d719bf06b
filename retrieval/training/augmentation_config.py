"""Settings of augmented queries and labels, as DRAGON trains (Lin et al. 2023). Imports nothing heavy.

augmentation:
  corpus: data/corpus.jsonl
  teachers: [{kind: bm25, index: "{out}/bm25"}, runs/dense, {kind: rerank, model: M, inner: runs/dense}]
  crops: {count: 10000, words: [8, 24]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from retrieval.config import AnyRetriever, Corpus, IndexedSettings, RetrieverSettings
from sleuth.settings import Count, Settings, Share


def _as_range(value: Any) -> Any:
    return [value, value] if isinstance(value, int) else value


Range = Annotated[tuple[Count, Count], BeforeValidator(_as_range)]
"""First and last, both included; one number stands for both."""


class CropSettings(Settings):
    """Queries cut out of passages: so many words in a row, of as many passages drawn from the corpus."""

    count: Count
    words: Range = (8, 24)
    """The shortest and the longest crop; a passage of fewer words than the shortest is left out."""

    @model_validator(mode="after")
    def _in_order(self) -> CropSettings:
        _check_order("words", self.words)
        return self


class AugmentationSettings(Settings):
    """Teachers label queries: real ones with or without judgements, and crops of passages.

    Each time a query is trained on, one of the teachers of the stage is drawn, its positive from that teacher's best
    hits and its negatives from hits further down.
    """

    teachers: Annotated[list[AnyRetriever], Field(min_length=1)]
    """Any retrievers, in the order in which they join."""
    corpus: Corpus | None = None
    """The passages that all teachers search; None: those that the first teacher with a ``corpus`` is made from."""
    crops: CropSettings | None = None
    queries: list[str] = Field(default_factory=list)
    """Files of real queries without judgements, beside those of ``data``: rows with ``text``, ``question`` or
    ``query``."""
    progressive: bool = True
    """One stage a teacher, each trained on the labels of all teachers so far; otherwise one stage with all of them."""
    positive_ranks: Count = 10
    """A positive is drawn from so many best hits; all of them, of every teacher so far, are never negatives."""
    negative_ranks: Range = (46, 50)
    """First and last rank of hard negatives."""
    golds: Share = 0.0
    """How often the positive is one of the query's golds, for a crop its passage, instead; the paper uses none."""
    labels: Path | None = None
    """Folder of the labels, to share them with other runs; None: in the run folder."""
    batch_size: Count = 128
    """Queries of one search."""

    @property
    def passages(self) -> str:
        """The passages that all teachers search."""
        made_from = [t.corpus for t in self.teachers if isinstance(t, IndexedSettings) and t.corpus is not None]
        return self.corpus or next(iter(made_from), "")

    @property
    def stages(self) -> list[int]:
        """How many teachers have labelled when a stage trains."""
        every = len(self.teachers)
        return list(range(1, every + 1)) if self.progressive else [every]

    def teacher(self, number: int) -> RetrieverSettings:
        """Teacher ``number``, from 1. An index that is there has to have been made from the passages."""
        settings = self.teachers[number - 1]
        if isinstance(settings, IndexedSettings) and settings.corpus is None and settings.index.exists():
            return settings.model_copy(update={"corpus": self.passages})
        return settings

    @model_validator(mode="after")
    def _fits(self) -> AugmentationSettings:
        _check_order("negative_ranks", self.negative_ranks)
        first, last = self.negative_ranks
        if first <= self.positive_ranks:
            raise ValueError(f"negative_ranks begin at {first}, among the {self.positive_ranks} positive_ranks")
        for number, teacher in enumerate(self.teachers, start=1):
            if teacher.most_hits is not None and teacher.most_hits < last:
                raise ValueError(
                    f"teacher {number} orders {teacher.most_hits} hits of a query, but negative_ranks end at {last}; "
                    "raise its depth"
                )
        if not self.passages:
            raise ValueError("corpus is missing: the passages that the teachers search")
        return self


def _check_order(name: str, given: tuple[int, int]) -> None:
    if given[1] < given[0]:
        raise ValueError(f"{name} is {list(given)}: the last is before the first")
