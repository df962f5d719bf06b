"""Combines rewards: a weighted sum that distinguishes zero from "could not be scored"."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rewards.config import RewardSettings
from rewards.costs import Overlong, RepeatedQuery, SearchCost
from rewards.format import Format
from rewards.outcome import F1, ExactMatch
from rewards.retrieval import Retrieval
from sleuth.errors import ConfigError
from sleuth.failures import ends_run, failure_of
from sleuth.plugins import load_object
from sleuth.protocols import Reward
from sleuth.types import Failure, ScoredTrajectory, Trajectory

REWARDS: dict[str, Callable[..., Reward]] = {
    "exact_match": ExactMatch,
    "f1": F1,
    "format": Format,
    "retrieval": Retrieval,
    "search_cost": SearchCost,
    "repeated_query": RepeatedQuery,
    "overlong": Overlong,
}


@dataclass(frozen=True, slots=True)
class Part:
    """A reward with its weight and the name under which its value is recorded."""

    name: str
    weight: float
    reward: Reward

    def value(self, trajectory: Trajectory) -> float | Failure | None:
        """A finite number, None if the reward does not apply, or why there is neither."""
        try:
            given = self.reward.score(trajectory.question, trajectory)
            value = None if given is None else float(given)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"it gave {given!r}, which is not a finite number")
        except Exception as error:  # rewards are anybody's code
            if ends_run(error):
                raise
            return failure_of(f"the reward {self.name}", error)
        return value


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores trajectories with every part, in order."""

    parts: tuple[Part, ...]

    def score(self, trajectory: Trajectory) -> ScoredTrajectory:
        """The weighted sum of the parts; a part that returns None is left out and recorded as None.

        The reward is None for a trajectory that infrastructure ended, if every part returns None, and if a part raises
        or gives what is not a finite number: the first such failure is put on record in the trajectory.
        """
        if not trajectory.scorable:
            return ScoredTrajectory(trajectory, None, dict.fromkeys((part.name for part in self.parts), None))
        given = {part.name: part.value(trajectory) for part in self.parts}
        values = {name: None if isinstance(value, Failure) else value for name, value in given.items()}
        known = [part.weight * value for part in self.parts if (value := values[part.name]) is not None]
        reward = sum(known) if known else None
        failure = next((value for value in given.values() if isinstance(value, Failure)), None)
        if failure is None and reward is not None and not math.isfinite(reward):
            failure = Failure("the sum of the rewards", f"OverflowError: it is {reward}")
        if failure is not None:
            return ScoredTrajectory(replace(trajectory, failure=failure), None, values)
        return ScoredTrajectory(trajectory, reward, values)


def make_scorer(settings: Sequence[RewardSettings]) -> Scorer:
    """The scorer for these settings. Raises ConfigError for an empty list or two parts with the same name."""
    if not settings:
        raise ConfigError("no reward is set", "for example rewards: [{kind: exact_match}]")
    names = [one.label for one in settings]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two rewards are called '{name}'", "give one of them another name:")
    return Scorer(tuple(Part(one.label, one.weight, _make(one)) for one in settings))


def _make(settings: RewardSettings) -> Reward:
    known = REWARDS.get(settings.kind)
    make = known if known is not None else load_object(settings.kind)
    try:
        reward: Reward = make(**settings.checked_options())
    except TypeError as error:
        raise ConfigError(f"reward {settings.kind}: {error}", "check its options") from None
    return reward
