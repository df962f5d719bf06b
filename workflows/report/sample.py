"""Samples the trajectories of a page if a run has more than a page can hold.

Groups of rollouts stay complete, every phase of training is represented, and evaluations show the same questions at
every checkpoint. One pass, in bounded memory.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

from sleuth.types import ScoredTrajectory
from workflows.report.collect import RunData, Source, read_source

CHANGED = 10_000
"""So many trajectories of questions whose answer changed are taken at most, so that they fit into memory."""
Group = list[ScoredTrajectory]
Key = tuple[str, str]
"""Id and text of a question: ids of two files may coincide."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Chosen trajectories of a source, group by group, and its total number of them.

    The first ``changed`` groups are of questions whose answer changed between evaluations: they are left out last.
    """

    run: int
    source: Source
    groups: Sequence[Group]
    total: int
    damaged: Sequence[str] = ()
    """Descriptions of what could not be read."""
    answers: Mapping[Key, float] = field(default_factory=dict)
    """EM of every question of an evaluation, shown or not; a mean where a question was asked several times."""
    changed: int = 0

    @property
    def shown(self) -> int:
        return sum(map(len, self.groups))


def choose(runs: Sequence[RunData], limit: int) -> list[Sample]:
    """At most ``limit`` trajectories, divided equally among runs, half rollouts and half evaluations.

    What one half does not need goes to the other, and what a run does not need goes to later runs. Trajectories of
    questions whose answer changed between evaluations are taken even where they alone are more than ``limit``, about
    `CHANGED` of them at most, of the same questions in every evaluation.
    """
    samples: list[Sample] = []
    for number, run in enumerate(runs):
        room = (limit - sum(sample.shown for sample in samples)) // (len(runs) - number)
        training = [source for source in run.sources if source.training]
        evaluations = [source for source in run.sources if not source.training]
        wanted = room // 2 if evaluations else room
        taken = [_thinned(number, source, wanted // len(training)) for source in training]
        room -= sum(sample.shown for sample in taken)
        later = [_thinned(number, source, room // len(evaluations)) for source in evaluations]
        spare = room - sum(sample.shown for sample in later)
        if any(sample.shown < sample.total for sample in taken) and spare > wanted // 4:
            most = spare + sum(sample.shown for sample in taken)
            taken = [_thinned(number, source, most // len(training)) for source in training]
        samples += [*taken, *later]
    changed = _changed(samples)
    return [_with_changed(sample, changed) for sample in samples]


def _changed(samples: Sequence[Sample]) -> Set[Key]:
    """Questions that some evaluation answered right and another one did not, evenly spread where there are many."""
    values: dict[Key, set[float]] = defaultdict(set)
    rows: dict[Key, float] = defaultdict(float)
    for sample in samples:
        for key, value in sample.answers.items():
            values[key].add(value)
            rows[key] += sample.total / len(sample.answers)
    changed = [key for key, found in values.items() if len(found) > 1]
    every = max(math.ceil(sum(rows[key] for key in changed) / CHANGED), 1)
    return set(changed[::every])


def _with_changed(sample: Sample, changed: Set[Key]) -> Sample:
    if sample.source.training or not changed:
        return sample
    first = [[row] for row in read_source(sample.source, []) if _key(row) in changed]
    rest = (group for group in sample.groups if _key(group[0]) not in changed)
    others, _ = thin(rest, max(sample.shown - len(first), 0))
    return replace(sample, groups=[*first, *others], changed=len(first))


def _key(row: ScoredTrajectory) -> Key:
    return row.trajectory.question.id, row.trajectory.question.text


def thin(groups: Iterable[Group], capacity: int) -> tuple[list[Group], int]:
    """Evenly spread groups with at most ``capacity`` rows in total, and the number of rows seen.

    Every n-th group is kept, with n doubling whenever twice the capacity is reached.
    """
    stride, held, total = 1, [], 0
    last: tuple[int, Group] | None = None
    for number, group in enumerate(groups):
        total += len(group)
        last = (number, group)
        if number % stride == 0:
            held.append(last)
        while len(held) > 2 and _rows(held) > 2 * capacity:
            stride *= 2
            held = [pair for pair in held if pair[0] % stride == 0]
    if last and held[-1][0] != last[0]:
        held.append(last)
    return [group for _, group in _spread(held, capacity)], total


def _spread(held: Sequence[tuple[int, Group]], capacity: int) -> Sequence[tuple[int, Group]]:
    if _rows(held) <= capacity:
        return held
    count = capacity // max(len(group) for _, group in held)
    if count < 2:
        return held[-1:] if count else []
    return [held[round(place * (len(held) - 1) / (count - 1))] for place in range(count)]


def _rows(held: Sequence[tuple[int, Group]]) -> int:
    return sum(len(group) for _, group in held)


def _thinned(run: int, source: Source, capacity: int) -> Sample:
    damaged: list[str] = []
    given: dict[Key, list[float]] = defaultdict(list)
    groups, total = thin(_noting(_groups(source, damaged), source, given), capacity)
    return Sample(run, source, groups, total, damaged, {key: sum(v) / len(v) for key, v in given.items()})


def _noting(groups: Iterable[Group], source: Source, given: dict[Key, list[float]]) -> Iterator[Group]:
    """The groups, and in ``given`` the EM of every question of an evaluation."""
    from rewards.text_match import exact_match

    for group in groups:
        if not source.training:
            for row in group:
                if row.trajectory.scorable:
                    given[_key(row)].append(exact_match(row.trajectory.answer, row.trajectory.question.answers))
        yield group


def _groups(source: Source, damaged: list[str]) -> Iterator[Group]:
    """Groups the rollouts of one question at one step; in an evaluation every question is its own group."""
    for _, group in itertools.groupby(read_source(source, damaged), key=lambda row: _place(row, source.training)):
        yield list(group)


def _place(row: ScoredTrajectory, training: bool) -> tuple[object, ...]:
    if training and row.origin:
        return (row.origin.step, row.origin.group)
    return (row.trajectory.question.id,)
