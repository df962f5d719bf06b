"""The lists of passages that a step ranks, as a function of seed and step alone."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from retrieval.passages import content_key, passage_text
from retrieval.training.rerankers.config import ContrastiveSettings, LossSettings
from retrieval.training.row import TrainingRow
from retrieval.training.sampling import BatchSampler, golds_by_query, mixture_of, same_as
from sleuth.errors import DataError
from sleuth.seeding import derive_seed
from sleuth.types import Passage

log = logging.getLogger("sleuth.train_retriever")


@dataclass(frozen=True, slots=True)
class RankedList:
    """A query and its passages, the ``golds`` of them first. ``labels``: 1 and 0, or a teacher's scores.

    ``instruction``: what the query asks for, where it is not what the model is asked anyway. ``weight``: of the list in
    the loss, 1 on average over the rows.
    """

    query: str
    passages: tuple[str, ...]
    golds: int
    labels: tuple[float, ...]
    instruction: str = ""
    weight: float = 1.0


class ListSampler:
    """Goes through the rows that have a negative in a new order each epoch, drawing negatives anew each time."""

    def __init__(
        self, rows: Sequence[TrainingRow], loss: LossSettings, batch_size: int, hard_negatives: int, seed: int
    ) -> None:
        self.rows = usable(rows, loss)
        if len(self.rows) < len(rows):
            log.info("%d of %d rows have what the loss %s needs", len(self.rows), len(rows), loss.kind)
        used = {mixture_of(row) for row in self.rows}
        self._useless = [name for name in dict.fromkeys(map(mixture_of, rows)) if name not in used]
        self._golds = golds_by_query(rows)
        self._mean_weight = fmean(row.weight for row in self.rows)
        self._loss, self._hard_negatives, self._seed = loss, hard_negatives, seed
        self._order = BatchSampler(self.rows, batch_size, hard_negatives, seed)

    def steps(self, epochs: float) -> int:
        return self._order.steps(epochs)

    def warn_of_undrawn(self, steps: int) -> None:
        """Say of which sources no row is drawn: their rows lack what the loss needs, or their weight is too small."""
        needed = "negatives with a teacher's scores" if self._loss.from_teacher else "negatives"
        for name in self._useless:
            log.warning("no row of source %s is drawn: the loss %s needs %s", name, self._loss.kind, needed)
        self._order.warn_of_undrawn(steps)

    def negatives_to_a_gold(self) -> float:
        """How many negatives there are for a gold, on average over the lists."""
        negatives = sum(min(len(row.negatives), self._hard_negatives) for row in self.rows)
        return negatives / sum(len(row.positives) for row in self.rows)

    def lists(self, step: int) -> list[RankedList]:
        """The lists of step ``step``, counted from 0."""
        drawn = self._order.rows(step)
        if isinstance(self._loss, ContrastiveSettings):
            return self._contrasted(drawn, self._loss.in_batch)
        return [self._list(row, epoch) for epoch, row in drawn]

    def _list(self, row: TrainingRow, epoch: int) -> RankedList:
        """All golds and some negatives; both in random order, since some losses take the order of equal labels."""
        rng = self._rng(row, epoch)
        golds = rng.sample(range(len(row.positives)), len(row.positives))
        others = rng.sample(range(len(row.negatives)), min(self._hard_negatives, len(row.negatives)))
        passages = [*(row.positives[i] for i in golds), *(row.negatives[i] for i in others)]
        labels = [1.0] * len(golds) + [0.0] * len(others)
        if self._loss.from_teacher:
            labels = [row.scores[content_key(p)] for p in passages]
        texts = tuple(map(passage_text, passages))
        return RankedList(row.query, texts, len(golds), tuple(labels), row.instruction, self._weight(row))

    def _contrasted(self, drawn: Sequence[tuple[int, TrainingRow]], in_batch: int) -> list[RankedList]:
        """One gold a query, its hard negatives, and golds of other queries that are none of its own."""
        rngs = [self._rng(row, epoch) for epoch, row in drawn]
        golds = [rng.choice(row.positives) for rng, (_, row) in zip(rngs, drawn, strict=True)]
        made = []
        for rng, (_, row), gold in zip(rngs, drawn, golds, strict=True):
            hard = rng.sample(row.negatives, min(self._hard_negatives, len(row.negatives)))
            own = same_as([*self._golds[row.query], *hard])
            foreign = list({p.id: p for p in golds if not own(p)}.values())
            negatives: list[Passage] = [*hard, *rng.sample(foreign, min(in_batch, len(foreign)))]
            texts = tuple(map(passage_text, (gold, *negatives)))
            labels = (1.0, *(0.0 for _ in negatives))
            made.append(RankedList(row.query, texts, 1, labels, row.instruction, self._weight(row)))
        return made

    def _weight(self, row: TrainingRow) -> float:
        return row.weight / self._mean_weight

    def _rng(self, row: TrainingRow, epoch: int) -> random.Random:
        return random.Random(derive_seed(self._seed, "list", epoch, row.id))


def usable(rows: Sequence[TrainingRow], loss: LossSettings) -> list[TrainingRow]:
    """The rows that the loss can learn from: with a negative that is no gold of the query, and scores if it needs them.

    Raises DataError if there is none.
    """
    golds = golds_by_query(rows)
    kept = [row for row in (_without_golds(row, golds[row.query]) for row in rows) if row.negatives]
    if not kept:
        raise DataError("no row has a negative for the reranker to learn from", "mine negatives first")
    scored = [row for row in map(_scored, kept) if row.positives and row.negatives] if loss.from_teacher else kept
    if not scored:
        raise DataError(
            f"loss {loss.kind} learns from a teacher's scores, and no row carries any",
            "give each passage a 'score', as sleuth mine does with mining.teacher",
        )
    return scored


def _without_golds(row: TrainingRow, golds: Sequence[Passage]) -> TrainingRow:
    gold = same_as(golds)
    return replace(row, negatives=tuple(p for p in row.negatives if not gold(p)))


def _scored(row: TrainingRow) -> TrainingRow:
    """The row with those of its passages that a teacher scored."""
    known: Callable[[Passage], bool] = lambda p: content_key(p) in row.scores
    return replace(row, positives=tuple(filter(known, row.positives)), negatives=tuple(filter(known, row.negatives)))
