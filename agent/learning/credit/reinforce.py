"""REINFORCE (Williams 1992): the reward itself, or the reward less the mean of the whole rollout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from agent.learning.credit.config import CreditSettings
from agent.learning.credit.group import EPSILON, centred, deviation
from sleuth.types import ScoredTrajectory


class ReinforceSettings(CreditSettings):
    """``baseline``: what is subtracted from every reward, nothing or the mean reward of the rollout (``batch``).

    ``scale`` divides by the standard deviation of the rollout (``batch``), or by nothing.
    """

    kind: Literal["reinforce"] = "reinforce"
    baseline: Literal["none", "batch"] = "none"
    scale: Literal["batch", "none"] = "none"

    def open(self) -> ReinforceCredit:
        return ReinforceCredit(self.baseline, self.scale)


@dataclass(frozen=True, slots=True)
class ReinforceCredit:
    """One number per trajectory; trajectories of one question are not compared with each other."""

    baseline: Literal["none", "batch"] = "none"
    scale: Literal["batch", "none"] = "none"

    def advantages(self, groups: Sequence[Sequence[ScoredTrajectory]]) -> list[list[float]]:
        rewards = [s.reward for group in groups for s in group if s.reward is not None]
        values = centred(rewards) if self.baseline == "batch" else rewards
        if self.scale == "batch":
            values = [value / (deviation(rewards) + EPSILON) for value in values]
        rest = iter(values)
        return [[next(rest) for _ in group] for group in groups]
