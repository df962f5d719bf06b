"""Which queries, positives and negatives make the batch of a step: a function of seed and step alone.

So a resumed run sees what an unbroken one would, and every rank knows the whole batch without asking.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.training.loss import Targets, mask_golds
from retrieval.training.rows import TrainingRow, passages_of
from sleuth.seeding import derive_seed
from sleuth.types import Passage


@dataclass(frozen=True, slots=True)
class Batch:
    """N queries and the M passages of their softmax, with what each is to the other."""

    queries: list[str]
    passages: list[Passage]
    targets: Targets


class BatchSampler:
    """Goes through the rows in a new order each epoch; a batch may reach into the next one, so none is left out.

    Golds and negatives are drawn anew each time. A batch is never larger than the rows.
    """

    def __init__(self, rows: Sequence[TrainingRow], batch_size: int, hard_negatives: int, seed: int) -> None:
        self._rows = rows
        self._golds = _golds_by_query(rows)
        self.batch_size = min(batch_size, len(rows))
        self._hard_negatives = hard_negatives
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def steps(self, epochs: float) -> int:
        """Steps that go through the rows ``epochs`` times, rounded up."""
        return max(1, -(-round(epochs * len(self._rows)) // self.batch_size))

    def rows(self, step: int) -> list[tuple[int, TrainingRow]]:
        """(epoch, row) of step ``step``, counted from 0."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = [divmod(place, len(self._rows)) for place in places]
        return [(epoch, self._rows[self._order(epoch)[place]]) for epoch, place in epochs]

    def batch(self, step: int) -> Batch:
        """Positives first, in the order of their queries, then the hard negatives."""
        positives: list[Passage] = []
        negatives: list[Passage] = []
        queries, golds = [], []
        for epoch, row in self.rows(step):
            rng = random.Random(derive_seed(self._seed, "row", epoch, row.id))
            positives.append(rng.choice(row.positives))
            negatives += rng.sample(row.negatives, min(self._hard_negatives, len(row.negatives)))
            queries.append(row.query)
            golds.append(self._golds[row.query])
        passages = [*positives, *negatives]
        columns, keys = _keys(passages, golds)
        return Batch(queries, passages, mask_golds(range(len(queries)), columns, keys))

    def queries_against(self, step: int, places: dict[str, int], columns: Sequence[str]) -> tuple[list[str], Targets]:
        """The queries of a step against a fixed table of passages; ``places`` finds a key's first column."""
        queries, positive, golds = [], [], []
        for epoch, row in self.rows(step):
            rng = random.Random(derive_seed(self._seed, "row", epoch, row.id))
            positive.append(places[content_key(rng.choice(row.positives))])
            queries.append(row.query)
            golds.append(frozenset(content_key(p) for p in self._golds[row.query]))
        return queries, mask_golds(positive, columns, golds)

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._rows)))
        random.Random(derive_seed(self._seed, "epoch", epoch)).shuffle(order)
        return order


def content_key(passage: Passage) -> str:
    """Equal for passages with equal title and text, whatever their ids."""
    return f"{passage.title}\x1f{passage.text}"


def _golds_by_query(rows: Sequence[TrainingRow]) -> dict[str, tuple[Passage, ...]]:
    """Several rows may ask the same: the golds of one are then golds of all."""
    found: dict[str, list[TrainingRow]] = {}
    for row in rows:
        found.setdefault(row.query, []).append(row)
    return {
        query: tuple(passages_of([TrainingRow("", query, row.positives) for row in same]))
        for query, same in found.items()
    }


def _keys(passages: Sequence[Passage], golds: Sequence[Sequence[Passage]]) -> tuple[list[str], list[frozenset[str]]]:
    """Keys under which passages of equal id or of equal content are one."""
    by_id: dict[str, str] = {}
    for passage in (*passages, *(gold for some in golds for gold in some)):
        by_id.setdefault(passage.id, content_key(passage))
    by_content: dict[str, str] = {}
    for passage in (*passages, *(gold for some in golds for gold in some)):
        by_content.setdefault(content_key(passage), by_id[passage.id])
    key = lambda p: by_content[content_key(p)]
    return [key(p) for p in passages], [frozenset(key(p) for p in some) for some in golds]
