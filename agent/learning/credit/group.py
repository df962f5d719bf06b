"""Group-relative advantages: a reward minus the mean of its group (Shao et al. 2024, eq. 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from agent.learning.credit.config import CreditSettings
from sleuth.types import ScoredTrajectory

Scale = Literal["group", "batch", "none"]
EPSILON = 1e-4
"""Added to a standard deviation before it divides, as TRL does."""
_EQUAL, _NOTHING = 1e-9, 1e-12
"""Rewards closer than this, in proportion and outright, are equal: sums of the same parts in another order round
differently, and parts that cancel leave a rest.
"""


class GroupSettings(CreditSettings):
    """Rewards less their group's mean. ``scale`` divides them by the standard deviation of the ``group``, of the whole
    rollout (``batch``), or by nothing (``none``: Dr. GRPO, Liu et al. 2025).
    """

    kind: Literal["group"] = "group"
    scale: Scale = "group"

    def open(self) -> GroupCredit:
        return GroupCredit(self.scale)


@dataclass(frozen=True, slots=True)
class GroupCredit:
    """One number per trajectory; exactly 0 for a group whose rewards are all equal."""

    scale: Scale = "group"

    def advantages(self, groups: Sequence[Sequence[ScoredTrajectory]]) -> list[list[float]]:
        rewards = [[s.reward for s in group if s.reward is not None] for group in groups]
        whole = deviation([reward for group in rewards for reward in group])
        return [self._of(group, whole) for group in rewards]

    def _of(self, rewards: Sequence[float], whole: float) -> list[float]:
        if self.scale == "none":
            return centred(rewards)
        spread = whole if self.scale == "batch" else deviation(rewards)
        return [value / (spread + EPSILON) for value in centred(rewards)]


def centred(values: Sequence[float]) -> list[float]:
    """``values`` less their mean; exactly 0 where all are equal but for rounding."""
    if math.isclose(min(values), max(values), rel_tol=_EQUAL, abs_tol=_NOTHING):
        return [0.0] * len(values)
    mean = fmean(values)
    return [value - mean for value in values]


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation (n - 1); 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0
