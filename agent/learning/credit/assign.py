"""Put a credit scheme to a rollout: who takes part, what comes back, which groups teach nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from sleuth.errors import TrainingError
from sleuth.protocols import Advantage, Credit
from sleuth.types import ScoredTrajectory

Row = list[float]
"""The advantages of a trajectory: one for each token that the policy sampled, in order."""


def assign(credit: Credit, groups: Sequence[Sequence[ScoredTrajectory]]) -> list[list[Row]]:
    """The advantages of every trajectory. What has no reward stays out of its group and gets 0.

    Raises TrainingError where an outside scheme gives something else than its contract says.
    """
    kept = [[scored for scored in group if scored.reward is not None] for group in groups]
    asked = [group for group in kept if group]
    found = credit.advantages(asked) if asked else []
    if [len(group) for group in found] != [len(group) for group in asked]:
        raise TrainingError(f"{type(credit).__name__} gave advantages for other groups than it got", "one each, please")
    given = iter([_row(credit, s, a) for g, f in zip(asked, found, strict=True) for s, a in zip(g, f, strict=True)])
    return [
        [next(given) if scored.reward is not None else [0.0] * _sampled(scored) for scored in group] for group in groups
    ]


def is_flat(group: Sequence[Row]) -> bool:
    """Whether a group teaches nothing: no token has an advantage. Dynamic sampling (DAPO) replaces such groups."""
    return not any(any(row) for row in group)


def mean_advantage(row: Row) -> float:
    return fmean(row) if row else 0.0


def _row(credit: Credit, scored: ScoredTrajectory, advantage: Advantage) -> Row:
    tokens = _sampled(scored)
    row = [float(a) for a in ([advantage] * tokens if isinstance(advantage, int | float) else advantage)]
    if len(row) != tokens or not all(map(math.isfinite, row)):
        raise TrainingError(
            f"{type(credit).__name__} gave {len(row)} advantages for {tokens} sampled tokens, or one that is no number",
            "an advantage is one number a trajectory, or one for each token that the policy sampled",
        )
    return row


def _sampled(scored: ScoredTrajectory) -> int:
    return sum(scored.trajectory.policy_mask)
