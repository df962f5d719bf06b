"""Dev evaluation of a reranker: the candidates of judged queries, ranked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retrieval.combine.parts import reach
from retrieval.config import Progress
from retrieval.open import open_retriever
from retrieval.passages import passage_text
from retrieval.rerankers.scorer import PairScorer, score_each
from retrieval.training.config import DevSettings
from retrieval.training.dev import judge_all, source_of
from retrieval.training.instructions import search_each
from retrieval.training.rerankers.config import RerankerSettings
from retrieval.training.row import TrainingRow
from retrieval.training.rows import load_rows
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
        asked = [(row, p) for row, found in zip(self.rows, self.passages, strict=True) for p in found]
        scores: list[float] = []
        for start in range(0, len(asked), _CHUNK):
            some = asked[start : start + _CHUNK]
            pairs = [(row.query, passage_text(p)) for row, p in some]
            scores += score_each(scorer, pairs, [row.instruction for row, _ in some])
            on_progress(len(scores), len(asked))
        left = iter(scores)
        ranked = [sorted((-next(left), i) for i in range(len(found))) for found in self.passages]
        ids = [[found[i].id for _, i in order] for found, order in zip(self.passages, ranked, strict=True)]
        return judge_all(self.rows, ids, k)


def load_candidates(dev: DevSettings, settings: RerankerSettings, progress: Progress) -> Candidates:
    """The queries of ``dev`` with the hits of the first stage, or with the passages that their rows carry.

    Raises DataError for rows that carry none.
    """
    rows = load_rows([source_of(dev)])[: dev.queries]
    if settings.first_stage is not None:
        first = settings.first_stage
        retriever = open_retriever(first, cached=False, resilient=not first.at_hand, progress=progress)
        found = search_each(retriever, rows, reach(retriever, settings.depth))
        return Candidates(rows, [[hit.passage for hit in hits] for hits in found], ordered=True)
    bare = sum(not row.negatives for row in rows)
    if bare:
        raise DataError(
            f"{bare} of {len(rows)} queries of {dev.path} carry no negatives to rank their golds among",
            "set reranker.first_stage to a retriever whose hits are ranked",
        )
    # golds last: where scores tie, a candidate keeps its place
    return Candidates(rows, [[*row.negatives, *row.positives] for row in rows], ordered=False)
