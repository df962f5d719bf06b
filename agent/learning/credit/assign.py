"""Apply a credit scheme to a rollout: exclude unscored trajectories, check the advantages, find flat groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from sleuth.errors import TrainingError
from sleuth.protocols import Advantage, Credit
from sleuth.types import ScoredTrajectory

TokenAdvantages = list[float]
"""The advantages of a trajectory: one per sampled token, in order."""


def assign(credit: Credit, groups: Sequence[Sequence[ScoredTrajectory]]) -> list[list[TokenAdvantages]]:
    """The advantages of every trajectory. Those without a reward are left out of their group and get 0.

    Raises TrainingError if an outside scheme violates its contract.
    """
    kept = [[scored for scored in group if scored.reward is not None] for group in groups]
    asked = [group for group in kept if group]
    found = credit.advantages(asked) if asked else []
    if [len(group) for group in found] != [len(group) for group in asked]:
        raise TrainingError(
            f"{type(credit).__name__} returned advantages of a different shape than the groups",
            "return a list per group with an entry per trajectory",
        )
    given = iter(
        [_per_token(credit, s, a) for g, f in zip(asked, found, strict=True) for s, a in zip(g, f, strict=True)]
    )
    return [
        [next(given) if scored.reward is not None else [0.0] * _sampled(scored) for scored in group] for group in groups
    ]


def is_flat(group: Sequence[TokenAdvantages]) -> bool:
    """Whether no token of a group has an advantage. Dynamic sampling (DAPO) replaces such groups."""
    return not any(any(row) for row in group)


def mean_advantage(row: TokenAdvantages) -> float:
    return fmean(row) if row else 0.0


def _per_token(credit: Credit, scored: ScoredTrajectory, advantage: Advantage) -> TokenAdvantages:
    tokens = _sampled(scored)
    row = [float(a) for a in ([advantage] * tokens if isinstance(advantage, int | float) else advantage)]
    if len(row) != tokens or not all(map(math.isfinite, row)):
        raise TrainingError(
            f"{type(credit).__name__} returned {len(row)} advantages for {tokens} sampled tokens, or some not finite",
            "return one number per trajectory, or one per sampled token",
        )
    return row


def _sampled(scored: ScoredTrajectory) -> int:
    return sum(scored.trajectory.policy_mask)
