"""Dev evaluation of a reranker: the candidates of judged queries, ranked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retrieval.combine.parts import reach
from retrieval.config import Progress
from retrieval.open import open_retriever
from retrieval.passages import passage_text
from retrieval.rerankers.scorer import PairScorer
from retrieval.training.config import DevSettings, SourceSettings
from retrieval.training.dev import judge_all
from retrieval.training.rerankers.config import RerankerSettings
from retrieval.training.rows import TrainingRow, load_rows
from sleuth.errors import DataError
from sleuth.types import Passage

OnProgress = Callable[[int, int], None]
_CHUNK = 1024
"""Pairs scored between two signs of progress."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Judged queries, and of each the passages to rank. ``ordered``: whether they stand in a first stage's order."""

    rows: Sequence[TrainingRow]
    passages: Sequence[Sequence[Passage]]
    ordered: bool

    def as_given(self, k: int) -> dict[str, list[float]]:
        """The measures of every query in the order that the passages stand in."""
        return judge_all(self.rows, [[p.id for p in found] for found in self.passages], k)

    def per_query(self, scorer: PairScorer, k: int, on_progress: OnProgress) -> dict[str, list[float]]:
        """``recall`` and ``all_gold`` among the first ``k``, and ``ndcg10``, of every query; ties as they stood."""
        pairs = [
            (row.query, passage_text(p)) for row, found in zip(self.rows, self.passages, strict=True) for p in found
        ]
        scores: list[float] = []
        for start in range(0, len(pairs), _CHUNK):
            scores += scorer.score(pairs[start : start + _CHUNK])
            on_progress(len(scores), len(pairs))
        left = iter(scores)
        ranked = [sorted((-next(left), i) for i in range(len(found))) for found in self.passages]
        ids = [[found[i].id for _, i in order] for found, order in zip(self.passages, ranked, strict=True)]
        return judge_all(self.rows, ids, k)


def load_candidates(dev: DevSettings, settings: RerankerSettings, progress: Progress) -> Candidates:
    """The queries of ``dev`` with the hits of the first stage, or with the passages that their rows carry.

    Raises DataError for rows that carry none.
    """
    rows = load_rows([SourceSettings(path=dev.path, split=dev.split, corpus=dev.corpus)])[: dev.queries]
    if settings.first_stage is not None:
        retriever = open_retriever(settings.first_stage, cached=False, progress=progress)
        found = retriever.search([row.query for row in rows], reach(retriever, settings.depth))
        return Candidates(rows, [[hit.passage for hit in hits] for hits in found], ordered=True)
    bare = sum(not row.negatives for row in rows)
    if bare:
        raise DataError(
            f"{bare} of {len(rows)} queries of {dev.path} carry no negatives to rank their golds among",
            "set reranker.first_stage to a retriever whose hits are ranked",
        )
    # golds last: where scores tie, a candidate keeps its place
    return Candidates(rows, [[*row.negatives, *row.positives] for row in rows], ordered=False)
