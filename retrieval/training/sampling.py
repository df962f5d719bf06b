"""Chooses the queries, positives and negatives of a step's batch, as a function of seed and step alone.

So a resumed run sees the same batches as an uninterrupted one, and every rank knows the whole batch.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from retrieval.passages import content_key
from retrieval.training.loss import Columns, Targets, mask_golds
from retrieval.training.rows import TrainingRow
from sleuth.seeding import derive_seed
from sleuth.types import Passage

KeyOf = Callable[[Passage], str]
"""A key for a passage; copies of a passage have the same key."""


@dataclass(frozen=True, slots=True)
class Batch:
    """N queries and the M passages of their softmax, with the targets that relate them."""

    queries: Sequence[str]
    passages: Sequence[Passage]
    targets: Targets


class BatchSampler:
    """Goes through the rows in a new order each epoch; a batch may span two epochs, so that no row is left out.

    Positives and negatives are drawn anew each time. A batch is never larger than the number of rows.
    """

    def __init__(self, rows: Sequence[TrainingRow], batch_size: int, hard_negatives: int, seed: int) -> None:
        self._rows = rows
        self._golds = golds_by_query(rows)
        self.batch_size = min(batch_size, len(rows))
        self._hard_negatives = hard_negatives
        self._seed = seed
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def steps(self, epochs: float) -> int:
        """The number of steps that cover the rows ``epochs`` times, rounded up."""
        return max(1, -(-round(epochs * len(self._rows)) // self.batch_size))

    def rows(self, step: int) -> list[tuple[int, TrainingRow]]:
        """(epoch, row) of step ``step``, counted from 0; a row with several teachers has what one of them says."""
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        epochs = [divmod(place, len(self._rows)) for place in places]
        return [(epoch, self._one_teacher(epoch, self._rows[self._order(epoch)[place]])) for epoch, place in epochs]

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
        key = one_key([*passages, *(gold for some in golds for gold in some)])
        keys = [frozenset(map(key, some)) for some in golds]
        columns = Columns([key(p) for p in passages])
        return Batch(queries, passages, mask_golds(range(len(queries)), columns, keys))

    def queries_against(
        self, step: int, places: dict[str, int], columns: Columns, key: KeyOf, device: torch.device | str = "cpu"
    ) -> tuple[list[str], Targets]:
        """The queries of a step against a fixed table of passages.

        ``places`` maps a content key to its first column; ``columns`` hold the passages' keys under ``key``.
        """
        queries, positive, golds = [], [], []
        for epoch, row in self.rows(step):
            rng = random.Random(derive_seed(self._seed, "row", epoch, row.id))
            positive.append(places[content_key(rng.choice(row.positives))])
            queries.append(row.query)
            golds.append(frozenset(key(p) for p in self._golds[row.query]))
        return queries, mask_golds(positive, columns, golds, device)

    def _one_teacher(self, epoch: int, row: TrainingRow) -> TrainingRow:
        if not row.labels:
            return row
        rng = random.Random(derive_seed(self._seed, "teacher", epoch, row.id))
        drawn = rng.choices(row.labels, [labels.share for labels in row.labels])[0]
        return replace(row, positives=drawn.positives, negatives=drawn.negatives)

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._rows)))
        random.Random(derive_seed(self._seed, "epoch", epoch)).shuffle(order)
        return order


def same_as(golds: Iterable[Passage]) -> Callable[[Passage], bool]:
    """Whether a passage is one of ``golds``, by id or by content."""
    known = list(golds)
    ids, contents = {gold.id for gold in known}, {content_key(gold) for gold in known}
    return lambda passage: passage.id in ids or content_key(passage) in contents


def golds_by_query(rows: Sequence[TrainingRow]) -> dict[str, tuple[Passage, ...]]:
    """Gold passages by query; rows with the same query share all their gold passages."""
    found: dict[str, list[TrainingRow]] = {}
    for row in rows:
        found.setdefault(row.query, []).append(row)
    return {query: tuple(dict.fromkeys(p for row in same for p in row.positives)) for query, same in found.items()}


def one_key(passages: Iterable[Passage]) -> KeyOf:
    """A key that is equal for those of ``passages`` that are the same by id or content, directly or through others.

    If A has the id of B and B the content of C, all three are one (union-find over contents).
    """
    parent: dict[str, str] = {}
    first_with_id: dict[str, str] = {}

    def root(content: str) -> str:
        while (above := parent[content]) != content:
            parent[content] = parent[above]  # halves the path
            content = above
        return content

    for passage in passages:
        content = content_key(passage)
        parent.setdefault(content, content)
        other = first_with_id.setdefault(passage.id, content)
        if other != content:
            parent[root(content)] = root(other)
    return lambda passage: root(content_key(passage))
