"""A credit scheme of one's own: what a trajectory earned counts less for its earlier turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agent.learning.credit.group import GroupCredit
from sleuth.types import ScoredTrajectory


@dataclass(frozen=True)
class FadingCredit:
    """Group-relative advantages, times ``fade`` for every turn that came after the token's own."""

    fade: float = 0.9

    def advantages(self, groups: Sequence[Sequence[ScoredTrajectory]]) -> list[list[list[float]]]:
        whole = GroupCredit().advantages(groups)
        return [[self._by_token(s, a) for s, a in zip(*pair, strict=True)] for pair in zip(groups, whole, strict=True)]

    def _by_token(self, scored: ScoredTrajectory, advantage: float) -> list[float]:
        turns = scored.trajectory.turns
        return [
            advantage * self.fade ** (len(turns) - 1 - place)
            for place, turn in enumerate(turns)
            for _ in turn.generation.token_ids
        ]
