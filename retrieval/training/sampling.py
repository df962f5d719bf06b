"""Which queries, positives and negatives make the batch of a step: a function of seed and step alone.

So a resumed run sees what an unbroken one would, and every rank knows the whole batch without asking.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from retrieval.training.loss import Targets, mask_golds
from retrieval.training.rows import TrainingRow
from sleuth.seeding import derive_seed
from sleuth.types import Passage

KeyOf = Callable[[Passage], str]
"""Names a passage; copies of one have one name."""


@dataclass(frozen=True, slots=True)
class Batch:
    """N queries and the M passages of their softmax, with what each is to the other."""

    queries: Sequence[str]
    passages: Sequence[Passage]
    targets: Targets


class BatchSampler:
    """Goes through the rows in a new order each epoch; a batch may reach into the next one, so none is left out.

    Golds and negatives are drawn anew each time. A batch is never larger than the rows.
    """

    def __init__(self, rows: Sequence[TrainingRow], batch_size: int, hard_negatives: int, seed: int) -> None:
        self._rows = rows
        self._golds = golds_by_query(rows)
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
        key = one_key([*passages, *(gold for some in golds for gold in some)])
        keys = [frozenset(map(key, some)) for some in golds]
        return Batch(queries, passages, mask_golds(range(len(queries)), [key(p) for p in passages], keys))

    def queries_against(
        self, step: int, places: dict[str, int], columns: Sequence[str], key: KeyOf
    ) -> tuple[list[str], Targets]:
        """The queries of a step against a fixed table of passages.

        ``places`` finds a content's first column; ``columns`` are the passages' keys by ``key``.
        """
        queries, positive, golds = [], [], []
        for epoch, row in self.rows(step):
            rng = random.Random(derive_seed(self._seed, "row", epoch, row.id))
            positive.append(places[content_key(rng.choice(row.positives))])
            queries.append(row.query)
            golds.append(frozenset(key(p) for p in self._golds[row.query]))
        return queries, mask_golds(positive, columns, golds)

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._rows)))
        random.Random(derive_seed(self._seed, "epoch", epoch)).shuffle(order)
        return order


def content_key(passage: Passage) -> str:
    """Equal for passages with equal title and text, whatever their ids."""
    return f"{passage.title}\x1f{passage.text}"


def same_as(golds: Iterable[Passage]) -> Callable[[Passage], bool]:
    """Whether a passage is one of ``golds``, by id or by content."""
    known = list(golds)
    ids, contents = {gold.id for gold in known}, {content_key(gold) for gold in known}
    return lambda passage: passage.id in ids or content_key(passage) in contents


def golds_by_query(rows: Sequence[TrainingRow]) -> dict[str, tuple[Passage, ...]]:
    """Several rows may ask the same: the golds of one are then golds of all."""
    found: dict[str, list[TrainingRow]] = {}
    for row in rows:
        found.setdefault(row.query, []).append(row)
    return {query: tuple(dict.fromkeys(p for row in same for p in row.positives)) for query, same in found.items()}


def one_key(passages: Iterable[Passage]) -> KeyOf:
    """A key under which those of ``passages`` that share an id or their content are one."""
    known = list(passages)
    by_id: dict[str, str] = {}
    for passage in known:
        by_id.setdefault(passage.id, content_key(passage))
    by_content: dict[str, str] = {}
    for passage in known:
        by_content.setdefault(content_key(passage), by_id[passage.id])
    return lambda passage: by_content[content_key(passage)]
