"""Costs: rewards of zero or less, weighted like the others (weights are never negative)."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.text_match import normalise_answer
from sleuth.types import Question, Trajectory


@dataclass(frozen=True)
class SearchCost:
    """-1 for every search beyond the first ``free``; each query of a turn with several is one."""

    name: str = "search_cost"
    free: int = 0

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        del question
        return -float(max(0, len(trajectory.queries) - self.free))


@dataclass(frozen=True)
class RepeatedQuery:
    """-1 for every search whose query, normalised like an answer, repeats an earlier one in the episode."""

    name: str = "repeated_query"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        del question
        queries = trajectory.queries
        return -float(len(queries) - len(set(map(_normalise_query, queries))))


@dataclass(frozen=True)
class Overlong:
    """0 up to ``soft`` tokens sampled in the episode, falling linearly to -1 at ``hard`` and beyond.

    Source: the soft overlong punishment of DAPO (arXiv 2503.14476).
    """

    soft: int
    hard: int
    name: str = "overlong"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        del question
        excess = sum(trajectory.policy_mask) - self.soft
        return -min(1.0, max(0.0, excess / (self.hard - self.soft)))


def _normalise_query(query: str) -> str:
    return normalise_answer(query) or query.strip()
