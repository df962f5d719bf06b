"""Hard negatives: hits of a retriever that are not gold passages (Karpukhin et al. 2020; Xiong et al. 2021)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from retrieval.combine.parts import reach
from retrieval.training.instructions import search_each
from retrieval.training.mining_config import FilterSettings
from retrieval.training.row import TrainingRow
from retrieval.training.sampling import golds_by_query, same_as
from sleuth.evidence import mentions_answer
from sleuth.protocols import Retriever
from sleuth.seeding import derive_seed
from sleuth.types import Hit, Passage

_SENTENCE = 6
"""If a query of at least this many words occurs verbatim in a passage, it was taken from it: not a negative."""

OnMined = Callable[[int, int], None]
"""Called as (queries mined, queries in total)."""


@dataclass(slots=True)
class MiningReport:
    """Counts of hits by outcome, of rows that got no negative, and of those where no gold could set the margin."""

    hits: int = 0
    golds: int = 0
    too_close: int = 0
    with_answer: int = 0
    kept: int = 0
    rows_without: int = 0
    rows_without_gold: int = 0

    def __str__(self) -> str:
        return (
            f"{self.hits} hits: {self.golds} gold, {self.too_close} within the margin, "
            f"{self.with_answer} with the answer, {self.kept} kept as negatives; {self.rows_without} rows got none"
        ) + (f", {self.rows_without_gold} of them since no gold was found" if self.rows_without_gold else "")


def mine(
    rows: Sequence[TrainingRow],
    retriever: Retriever,
    settings: FilterSettings,
    *,
    batch_size: int = 128,
    keep_given: bool = True,
    on_progress: OnMined | None = None,
) -> tuple[list[TrainingRow], MiningReport]:
    """The rows with mined negatives first, followed (if ``keep_given``) by the ones they had."""
    report = MiningReport()
    golds = golds_by_query(rows)
    mined: list[TrainingRow] = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        answers = search_each(retriever, batch, reach(retriever, settings.last_rank))
        for row, hits in zip(batch, answers, strict=True):
            found = negatives_of(replace(row, positives=golds[row.query]), hits, settings, report)
            given = [p for p in row.negatives if p not in found] if keep_given else []
            mined.append(replace(row, negatives=(*found, *given)))
        if on_progress:
            on_progress(len(mined), len(rows))
    return mined, report


def negatives_of(
    row: TrainingRow, hits: Sequence[Hit], settings: FilterSettings, report: MiningReport
) -> list[Passage]:
    """The hits of one query that pass every filter: the best, or a seeded sample."""
    is_gold = same_as(row.positives)
    source = row.query if len(row.query.split()) >= _SENTENCE else None
    gold: Callable[[Hit], bool] = lambda h: is_gold(h.passage) or (source is not None and source in h.passage.text)
    ceiling = _ceiling([hit.score for hit in hits if gold(hit)], settings)
    report.rows_without_gold += ceiling == -math.inf
    window = [hit for hit in hits if settings.first_rank <= hit.rank <= settings.last_rank]
    fit = []
    for hit in window:
        report.hits += 1
        if gold(hit):
            report.golds += 1
        elif hit.score >= ceiling:
            report.too_close += 1
        elif settings.drop_answers and mentions_answer(hit.passage, row.answers):
            report.with_answer += 1
        else:
            fit.append(hit.passage)
    chosen = _choose(fit, row, settings)
    report.kept += len(chosen)
    report.rows_without += not chosen
    return chosen


def _ceiling(gold_scores: Iterable[float], settings: FilterSettings) -> float:
    """The score that a negative must stay below, from the weakest gold retrieved.

    A gold that was not retrieved scores below all hits, so if none was, no hit is below the golds by any margin.
    """
    weakest = min(gold_scores, default=None)
    limits = [math.inf]
    if weakest is None:
        return math.inf if settings.margin is None and settings.relative_margin is None else -math.inf
    if settings.margin is not None:
        limits.append(weakest - settings.margin)
    if weakest > 0 and settings.relative_margin is not None:
        limits.append(weakest * (1 - settings.relative_margin))
    return min(limits)


def _choose(fit: Sequence[Passage], row: TrainingRow, settings: FilterSettings) -> list[Passage]:
    if settings.sampling == "top" or len(fit) <= settings.negatives:
        return list(fit[: settings.negatives])
    places = random.Random(derive_seed(settings.seed, "mining", row.id)).sample(range(len(fit)), settings.negatives)
    return [fit[place] for place in sorted(places)]
