"""Chooses the queries, positives and negatives of a step's batch, as a function of seed and step alone.

So a resumed run sees the same batches as an uninterrupted one, and every rank knows the whole batch.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from statistics import fmean

import torch

from retrieval.passages import content_key
from retrieval.training.config import TrainingSettings
from retrieval.training.loss import Columns, Targets, mask_golds
from retrieval.training.row import TrainingRow
from sleuth.seeding import derive_seed
from sleuth.types import Passage

log = logging.getLogger("sleuth.train_retriever")

KeyOf = Callable[[Passage], str]
"""A key for a passage; copies of a passage have the same key."""


@dataclass(frozen=True, slots=True)
class Batch:
    """N queries and the M passages of their softmax, with the targets that relate them.

    ``instructions``: each query's own, "" where it has none. ``teacher``: a teacher's scores of each query's own
    passages, its positive and then its hard negatives, NaN where there is none. ``weights``: of each query in the loss.
    """

    queries: Sequence[str]
    passages: Sequence[Passage]
    targets: Targets
    instructions: Sequence[str] = ()
    teacher: Sequence[Sequence[float]] = ()
    weights: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A row of a batch, with the passages that were drawn from it."""

    row: TrainingRow
    positive: Passage
    negatives: Sequence[Passage]

    @property
    def teacher(self) -> list[float]:
        own = (self.positive, *self.negatives)
        return [self.row.scores.get(content_key(passage), math.nan) for passage in own]


class BatchSampler:
    """Goes through the rows in a new order each epoch; a batch may span two epochs, so that no row is left out.

    Positives and negatives are drawn anew each time. A batch is never larger than the number of rows. With
    ``one_source`` each batch is of one source: all of them have their turns, as many as their rows need, in a new order
    each time. Where rows have a share, a source has as large a part of the rows of all batches so far, or of the turns,
    as its share has of all shares, to the nearest whole number (see `apportioned`). It begins anew when its rows are
    used up, within a batch if need be.
    """

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        batch_size: int,
        hard_negatives: int,
        seed: int,
        *,
        one_source: bool = False,
    ) -> None:
        self._golds = golds_by_query(rows)
        self._mean_weight = fmean(row.weight for row in rows)
        self._hard_negatives = hard_negatives
        self._seed = seed
        self._rows, self._batch_size = len(rows), min(batch_size, len(rows))
        weighted = any(row.share is not None for row in rows)
        groups: dict[str, list[TrainingRow]] = {}
        for row in rows:
            groups.setdefault(mixture_of(row) if weighted else row.source if one_source else "", []).append(row)
        self._weights = [some[0].share or 1.0 for some in groups.values()] if weighted else None
        self._together = weighted and not one_source
        self._streams = [_Stream(some, batch_size, seed, name) for name, some in groups.items()]
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def steps(self, epochs: float) -> int:
        """The number of steps that read as many rows as there are ``epochs`` times, rounded up."""
        if self._together:
            return max(1, -(-round(epochs * self._rows) // self._batch_size))
        return max(1, sum(stream.steps(epochs) for stream in self._streams))

    def warn_of_undrawn(self, steps: int) -> None:
        """Say of which sources no row is drawn in the first ``steps`` steps."""
        for name in self.not_drawn(steps):
            log.warning("no row of source %s is drawn in %d steps: raise its weight, or the steps", name, steps)

    def not_drawn(self, steps: int) -> list[str]:
        """Sources of which no row is drawn in the first ``steps`` steps, as their weight is so small."""
        turns = sum(stream.batches for stream in self._streams)
        counts = self._begun(steps * self._batch_size if self._together else -(-steps // turns) * turns)
        return [stream.name for stream, count in zip(self._streams, counts, strict=True) if not count]

    def rows(self, step: int) -> list[tuple[int, TrainingRow]]:
        """(epoch, row) of step ``step``, counted from 0; a row with several teachers has what one of them says."""
        if self._together:
            starts, ends = (self._begun(number * self._batch_size) for number in (step, step + 1))
            return [
                drawn
                for stream, start, end in zip(self._streams, starts, ends, strict=True)
                for drawn in stream.rows(range(start, end))
            ]
        cycle, place = divmod(step, sum(stream.batches for stream in self._streams))
        order = self._order(cycle)
        turn = order[place]
        return self._streams[turn].batch(self._turns(cycle)[turn] + order[:place].count(turn))

    def _begun(self, total: int) -> list[int]:
        """How many of the first ``total`` rows, or of the turns in so many cycles of them, are of each source."""
        if self._weights is not None:
            return apportioned(self._weights, total)
        counts = [stream.batches for stream in self._streams]
        return [total // sum(counts) * count for count in counts]

    def _turns(self, cycle: int) -> list[int]:
        """How many turns each source has had before a cycle."""
        return self._begun(cycle * sum(stream.batches for stream in self._streams))

    def batch(self, step: int) -> Batch:
        """Positives first, in the order of their queries, then the hard negatives."""
        drawn = self._drawn(step)
        passages = [one.positive for one in drawn] + [passage for one in drawn for passage in one.negatives]
        golds = [self._golds[one.row.query] for one in drawn]
        key = one_key([*passages, *(gold for some in golds for gold in some)])
        columns = Columns([key(p) for p in passages], key)
        ends = list(itertools.accumulate((len(one.negatives) for one in drawn), initial=len(drawn)))
        negatives = [range(first, last) for first, last in itertools.pairwise(ends)]
        return self._batch(drawn, passages, columns, range(len(drawn)), negatives)

    def batch_against(
        self,
        step: int,
        passages: Sequence[Passage],
        places: Mapping[str, int],
        columns: Columns,
        device: torch.device | str = "cpu",
    ) -> Batch:
        """The queries of a step against a fixed table of ``passages``; ``places`` are their columns by content key."""
        drawn = self._drawn(step)
        positive = [places[content_key(one.positive)] for one in drawn]
        negatives = [[places[content_key(p)] for p in one.negatives] for one in drawn]
        return self._batch(drawn, passages, columns, positive, negatives, device)

    def _drawn(self, step: int) -> list[Drawn]:
        found = []
        for epoch, row in self.rows(step):
            rng = random.Random(derive_seed(self._seed, "row", epoch, row.id))
            positive = rng.choice(row.positives)
            found.append(Drawn(row, positive, rng.sample(row.negatives, min(self._hard_negatives, len(row.negatives)))))
        return found

    def _batch(
        self,
        drawn: Sequence[Drawn],
        passages: Sequence[Passage],
        columns: Columns,
        positive: Sequence[int],
        negatives: Sequence[Sequence[int]],
        device: torch.device | str = "cpu",
    ) -> Batch:
        golds = [frozenset(map(columns.key_of, self._golds[one.row.query])) for one in drawn]
        return Batch(
            [one.row.query for one in drawn],
            passages,
            mask_golds(positive, columns, golds, negatives, device),
            [one.row.instruction for one in drawn],
            [one.teacher for one in drawn],
            [one.row.weight / self._mean_weight for one in drawn],
        )

    def _shuffled(self, cycle: int) -> list[int]:
        counts = (end - start for start, end in zip(self._turns(cycle), self._turns(cycle + 1), strict=True))
        order = [number for number, count in enumerate(counts) for _ in range(count)]
        random.Random(derive_seed(self._seed, "turns", cycle)).shuffle(order)
        return order


class _Stream:
    """The rows of a source again and again, in a new order each epoch, cut into batches."""

    def __init__(self, rows: Sequence[TrainingRow], batch_size: int, seed: int, name: str) -> None:
        self._rows, self._size = rows, min(batch_size, len(rows))
        self._seed, self.name = seed, name
        self.batches = -(-len(rows) // self._size)
        """How many go through all rows once."""
        self._order = functools.lru_cache(maxsize=2)(self._shuffled)

    def steps(self, epochs: float) -> int:
        return -(-round(epochs * len(self._rows)) // self._size)

    def batch(self, number: int) -> list[tuple[int, TrainingRow]]:
        return self.rows(range(number * self._size, (number + 1) * self._size))

    def rows(self, places: range) -> list[tuple[int, TrainingRow]]:
        """(epoch, row) of ``places`` in all that the stream holds."""
        epochs = [divmod(place, len(self._rows)) for place in places]
        return [(epoch, self._one_teacher(epoch, self._rows[self._order(epoch)[place]])) for epoch, place in epochs]

    def _one_teacher(self, epoch: int, row: TrainingRow) -> TrainingRow:
        if not row.labels:
            return row
        rng = random.Random(derive_seed(self._seed, "teacher", epoch, row.id))
        drawn = rng.choices(row.labels, [labels.share for labels in row.labels])[0]
        return replace(row, positives=drawn.positives, negatives=drawn.negatives)

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(len(self._rows)))
        random.Random(derive_seed(self._seed, "epoch", epoch, *([self.name] if self.name else []))).shuffle(order)
        return order


def mixture_of(row: TrainingRow) -> str:
    """The source of the mixture that a row is of: sources that a file names itself belong to one."""
    return row.source.partition("/")[0]


def apportioned(weights: Sequence[float], total: int) -> list[int]:
    """``total`` divided by weight into whole numbers, none of which falls when ``total`` rises (Webster's method).

    So the rows of batch after batch come to the parts that the weights say, also where those of one batch cannot.
    Exact, ties to the first: a resumed run divides as an unbroken one.
    """
    exact = [Fraction(weight) for weight in weights]
    parts = [math.ceil(total * weight / sum(exact) - Fraction(1, 2)) for weight in exact]
    while sum(parts) < total:
        parts[max(range(len(parts)), key=lambda place: (exact[place] / (2 * parts[place] + 1), -place))] += 1
    while sum(parts) > total:
        some = [place for place, part in enumerate(parts) if part]
        parts[min(some, key=lambda place: (exact[place] / (2 * parts[place] - 1), -place))] -= 1
    return parts


def sampler_of(rows: Sequence[TrainingRow], settings: TrainingSettings, seed: int) -> BatchSampler:
    one_source = settings.batches == "one_source"
    return BatchSampler(rows, settings.batch_size, settings.hard_negatives, seed, one_source=one_source)


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
