"""RLOO: a reward less the mean of the other rewards of its group (Ahmadian et al. 2024, eq. 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent.learning.credit.config import CreditSettings
from agent.learning.credit.group import centred
from sleuth.types import ScoredTrajectory


class LeaveOneOutSettings(CreditSettings):
    """The baseline of a trajectory is the mean reward of the others that answer its question."""

    kind: Literal["leave_one_out"] = "leave_one_out"

    def open(self) -> LeaveOneOutCredit:
        return LeaveOneOutCredit()


@dataclass(frozen=True, slots=True)
class LeaveOneOutCredit:
    """One number per trajectory, 0 where it is the only one that was scored: nothing is left to compare it with."""

    def advantages(self, groups: Sequence[Sequence[ScoredTrajectory]]) -> list[list[float]]:
        return [_of([s.reward for s in group if s.reward is not None]) for group in groups]


def _of(rewards: Sequence[float]) -> list[float]:
    """r - (sum - r) / (n - 1), which is n / (n - 1) times the reward less the mean of all."""
    count = len(rewards)
    return [value * count / (count - 1) for value in centred(rewards)] if count > 1 else [0.0]
