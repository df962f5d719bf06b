"""A teacher's scores for the passages of training rows, from which encoders and rerankers learn.

The rows with scores are written and read as Tevatron jsonl whose passages have a ``score``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from retrieval.passages import content_key, passage_text
from retrieval.rerankers.scorer import PairScorer
from retrieval.training.rows import TrainingRow
from sleuth.errors import DataError

OnScored = Callable[[int, int], None]
"""Called as (pairs scored, pairs in total)."""


def score_rows(
    rows: Sequence[TrainingRow],
    scorer: PairScorer,
    *,
    chunk: int = 1024,
    on_progress: OnScored | None = None,
) -> list[TrainingRow]:
    """The rows with a score for each passage, in place of any that they had; ``chunk`` pairs are scored at once.

    Several teachers are one scorer: `retrieval.rerankers.scorer.MeanScorer`. Raises DataError for a score that is not
    finite.
    """
    pairs = [(row.query, passage_text(p)) for row in rows for p in (*row.positives, *row.negatives)]
    scores: list[float] = []
    for start in range(0, len(pairs), chunk):
        scores += scorer.score(pairs[start : start + chunk])
        if on_progress:
            on_progress(len(scores), len(pairs))
    if len(scores) != len(pairs) or not all(map(math.isfinite, scores)):
        raise DataError("the teacher gave no finite score for some passages", "is its model the right one?")
    left = iter(scores)
    return [replace(row, scores={content_key(p): next(left) for p in (*row.positives, *row.negatives)}) for row in rows]
