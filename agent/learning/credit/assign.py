"""Apply a credit scheme to a rollout: exclude unscored trajectories, check the advantages, find flat groups."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from agent.learning.algorithms import by_token_refused
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
    found = _listed(credit, credit.advantages(asked)) if asked else []
    if [len(group) for group in found] != [len(group) for group in asked]:
        raise _broken(credit, f"{list(map(len, found))} advantages for groups of {list(map(len, asked))} trajectories")
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


def refuse_by_token(rows: Sequence[TokenAdvantages], loss: str, importance: str) -> None:
    """Raises TrainingError if advantages differ within a trajectory and the loss would mix them."""
    why = by_token_refused(loss, importance)
    if why and any(len(set(row)) > 1 for row in rows):
        raise TrainingError(why, "or choose a credit scheme that gives a trajectory one advantage")


def advantages_kept(row: TokenAdvantages, turns: Sequence[int]) -> tuple[float, ...] | None:
    """As ``Origin.advantages`` stores them: ``turns`` has the number of tokens of each turn."""
    if len(set(row)) < 2:
        return None
    starts = [sum(turns[:turn]) for turn in range(len(turns))]
    parts = [row[start : start + length] for start, length in zip(starts, turns, strict=True)]
    constant = all(len(set(part)) < 2 for part in parts)
    return tuple(part[0] if part else 0.0 for part in parts) if constant else tuple(row)


def _listed(credit: Credit, found: Any) -> list[list[Advantage]]:
    try:
        return [list(group) for group in found]
    except TypeError:
        raise _broken(credit, f"a {type(found).__name__} that does not list advantages by group") from None


def _per_token(credit: Credit, scored: ScoredTrajectory, advantage: Any) -> TokenAdvantages:
    tokens = _sampled(scored)
    try:
        plain = advantage.tolist() if hasattr(advantage, "tolist") else advantage  # numpy's or torch's
        row = [float(plain)] * tokens if isinstance(plain, int | float) else [float(value) for value in plain]
    except (TypeError, ValueError):
        raise _broken(credit, f"an advantage that is a {type(advantage).__name__}") from None
    if len(row) != tokens:
        raise _broken(credit, f"{len(row)} advantages for a trajectory of {tokens} sampled tokens")
    if not all(map(math.isfinite, row)):
        raise _broken(credit, "an advantage that is infinite or not a number")
    return row


def _broken(credit: Credit, given: str) -> TrainingError:
    return TrainingError(
        f"the credit scheme {type(credit).__name__} gave {given}",
        "it must give one number for each trajectory, or one for each token that the policy sampled in it",
    )


def _sampled(scored: ScoredTrajectory) -> int:
    return sum(scored.trajectory.policy_mask)
