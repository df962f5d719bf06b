"""Costs: rewards of zero or less, weighted like the others (weights are never negative)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from rewards.config import RewardSettings
from rewards.text_match import normalise_answer
from sleuth.settings import Count
from sleuth.types import Question, Trajectory


class SearchCostSettings(RewardSettings):
    """A cost for every search beyond the first ``free``."""

    kind: Literal["search_cost"] = "search_cost"
    free: Annotated[int, Field(ge=0)] = 0

    def open(self) -> SearchCost:
        return SearchCost(free=self.free)


class RepeatedQuerySettings(RewardSettings):
    """A cost for asking the same again."""

    kind: Literal["repeated_query"] = "repeated_query"

    def open(self) -> RepeatedQuery:
        return RepeatedQuery()


class NoSearchSettings(RewardSettings):
    """A penalty for an episode without a search; Search-R1++ gives it weight 0.1."""

    kind: Literal["no_search"] = "no_search"

    def open(self) -> NoSearch:
        return NoSearch()


class NoAnswerSettings(RewardSettings):
    """A penalty for an episode without an answer; Search-R1++ gives it weight 0.1."""

    kind: Literal["no_answer"] = "no_answer"

    def open(self) -> NoAnswer:
        return NoAnswer()


class OverlongSettings(RewardSettings):
    """A cost that grows from ``soft`` to ``hard`` sampled tokens."""

    kind: Literal["overlong"] = "overlong"
    soft: Count = 1024
    hard: Count = 2048

    @model_validator(mode="after")
    def _in_order(self) -> OverlongSettings:
        if self.hard <= self.soft:
            raise ValueError(f"hard ({self.hard}) must be above soft ({self.soft})")
        return self

    def open(self) -> Overlong:
        return Overlong(self.soft, self.hard)


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
class NoSearch:
    """-1 if the agent made no search, else 0. Searches count, not turns that tried to.

    Source: one of the two action-level penalties of Search-R1++ (arXiv 2602.19526), 0.1 each beside F1.
    """

    name: str = "no_search"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        del question
        return 0.0 if trajectory.searches else -1.0


@dataclass(frozen=True)
class NoAnswer:
    """-1 if the episode ended without an answer or with an empty one, else 0: the other penalty of Search-R1++.

    Without it no answer and a wrong one earn the same, and a policy learns to withhold what may be wrong.
    """

    name: str = "no_answer"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        del question
        return 0.0 if (trajectory.answer or "").strip() else -1.0


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
