"""Questions divided among the training processes: each plays its part, and all get every trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agent.learning.rollouts import Driver
from sleuth.types import Question, Sampling, Trajectory


class SharedDriver:
    """A driver for several processes that all ask it the same questions at the same time.

    Every trajectory is played once, by one process, with the seed that one process alone would give it.
    """

    def __init__(self, own: Driver, rank: int, ranks: int) -> None:
        self._own = own
        self._rank = rank
        self._ranks = ranks
        self.codec = own.codec
        self.environment = own.environment
        self.policy = own.policy

    def run(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[Trajectory]:
        from accelerate.utils import gather_object

        given = list(seeds or range(len(questions)))
        mine = range(self._rank, len(questions), self._ranks)
        played = self._own.run([questions[i] for i in mine], sampling, [given[i] for i in mine]) if mine else []
        everyones = dict(gather_object(list(zip(mine, played, strict=True))))
        return [everyones[i] for i in range(len(questions))]


def shared(own: Driver, accelerator: Any) -> Driver:
    """``own`` for a single process; for several, one that divides the questions among them."""
    ranks = int(accelerator.num_processes)
    return own if ranks == 1 else SharedDriver(own, int(accelerator.process_index), ranks)
