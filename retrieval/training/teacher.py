"""Scores of a teacher for the passages of training rows: any reranker or retriever."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from retrieval.combine.parts import reach
from retrieval.combine.rerank import RerankRetriever
from retrieval.encoders.retriever import EncoderRetriever
from retrieval.passages import content_key, passage_text
from retrieval.rerankers.scorer import score_each
from retrieval.training.instructions import encode_queries, search_each
from retrieval.training.row import TrainingRow
from sleuth.errors import DataError
from sleuth.protocols import Retriever
from sleuth.types import Passage

OnScored = Callable[[int, int], None]
"""Called as (queries scored, queries in total)."""


@dataclass(slots=True)
class TeacherReport:
    """Passages by whether the teacher scored them."""

    scored: int = 0
    unscored: int = 0

    def __str__(self) -> str:
        return f"the teacher scored {self.scored} passages" + (
            f", and did not find {self.unscored}" if self.unscored else ""
        )


def with_scores(
    rows: Sequence[TrainingRow],
    teacher: Retriever,
    *,
    depth: int,
    batch_size: int = 128,
    on_progress: OnScored | None = None,
) -> tuple[list[TrainingRow], TeacherReport]:
    """The rows with a score for each of their passages, in place of those they had.

    A reranker reads every pair, an encoder compares every pair. Any other retriever is searched to ``depth``, and
    passages that it does not find get none. Raises DataError for a score that is not finite.
    """
    scores_of = _scores_of(teacher, depth)
    report, made = TeacherReport(), []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        for row, scores in zip(batch, scores_of(batch), strict=True):
            if not all(map(math.isfinite, scores.values())):
                raise DataError(
                    f"the teacher gave no finite score for a passage of query {row.id}", "is its model the right one?"
                )
            made.append(replace(row, scores=scores))
            report.scored += len(scores)
            report.unscored += len(_own(row)) - len(scores)
        if on_progress:
            on_progress(len(made), len(rows))
    return made, report


Scores = Mapping[str, float]
"""By content key."""


def _own(row: TrainingRow) -> dict[str, Passage]:
    return {content_key(p): p for p in (*row.positives, *row.negatives)}


def _scores_of(teacher: Retriever, depth: int) -> Callable[[Sequence[TrainingRow]], Sequence[Scores]]:
    if isinstance(teacher, RerankRetriever):
        return lambda rows: _by_pairs(teacher, rows)
    if isinstance(teacher, EncoderRetriever):
        return lambda rows: _by_vectors(teacher, rows)
    return lambda rows: _by_search(teacher, rows, depth)


def _by_pairs(teacher: RerankRetriever, rows: Sequence[TrainingRow]) -> Sequence[Scores]:
    owned = [_own(row) for row in rows]
    asked = [(row, p) for row, own in zip(rows, owned, strict=True) for p in own.values()]
    pairs = [(row.query, passage_text(p)) for row, p in asked]
    scores = iter(score_each(teacher.scorer, pairs, [row.instruction for row, _ in asked]) if pairs else [])
    return [{key: next(scores) for key in own} for own in owned]


def _by_vectors(teacher: EncoderRetriever, rows: Sequence[TrainingRow]) -> Sequence[Scores]:
    encoder = teacher.encoder
    queries = encode_queries(encoder, rows)
    owned = [_own(row) for row in rows]
    distinct = {key: p for own in owned for key, p in own.items()}
    place = {key: number for number, key in enumerate(distinct)}
    passages = encoder.encode_passages(list(distinct.values()))
    found = []
    for number, own in enumerate(owned):
        some = passages[[place[key] for key in own]].to(encoder.device)
        scores = encoder.family.scores(queries[number : number + 1].to(encoder.device), some)[0].tolist()
        found.append(dict(zip(own, scores, strict=True)))
    return found


def _by_search(teacher: Retriever, rows: Sequence[TrainingRow], depth: int) -> Sequence[Scores]:
    answers = search_each(teacher, rows, reach(teacher, depth))
    found = []
    for row, hits in zip(rows, answers, strict=True):
        own = _own(row)
        keys = {p.id: key for key, p in own.items()}
        scores: dict[str, float] = {}
        for hit in hits:  # best first; a passage counts by its content or its id
            key = content_key(hit.passage)
            key = key if key in own else keys.get(hit.passage.id, "")
            if key in own:
                scores.setdefault(key, hit.score)
        found.append(scores)
    return found
