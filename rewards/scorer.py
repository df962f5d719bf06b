"""Combines rewards: a weighted sum that distinguishes zero from "could not be scored"."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rewards.config import RewardSettings
from sleuth.errors import ConfigError, SleuthError
from sleuth.failures import ends_run, failure_of
from sleuth.protocols import BatchReward, Reward
from sleuth.types import Failure, ScoredTrajectory, Trajectory

log = logging.getLogger("sleuth.rewards")

Value = float | Failure | None
"""What a part says of a trajectory: a finite number, why there is none, or that it does not apply."""


@dataclass(frozen=True, slots=True)
class Part:
    """A reward with its weight and the name under which its value is recorded."""

    name: str
    weight: float
    reward: Reward

    def values(self, trajectories: Sequence[Trajectory]) -> list[Value]:
        """One for each trajectory. Raises what the user must mend, such as a ConfigError."""
        given = self._together(trajectories) if isinstance(self.reward, BatchReward) else None
        return [self._checked(value) for value in given or map(self._alone, trajectories)]

    def _together(self, trajectories: Sequence[Trajectory]) -> list[Any] | None:
        """The values of a batch, or None if one of its trajectories is too much for the reward."""
        assert isinstance(self.reward, BatchReward)
        try:
            given = list(self.reward.score_all(trajectories))
        except Exception as error:  # rewards are anybody's code
            if ends_run(error):
                raise
            return [error] * len(trajectories) if isinstance(error, SleuthError) else None
        if len(given) != len(trajectories):
            raise ConfigError(f"the reward {self.name} gave {len(given)} values for {len(trajectories)} trajectories")
        return given

    def _alone(self, trajectory: Trajectory) -> Any:
        try:
            return self.reward.score(trajectory.question, trajectory)
        except Exception as error:
            if ends_run(error):
                raise
            return error

    def _checked(self, given: Any) -> Value:
        if isinstance(given, Exception):
            if ends_run(given):
                raise given
            return failure_of(f"the reward {self.name}", given)
        try:
            value = None if given is None else float(given)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"it gave {given!r}, which is not a finite number")
        except Exception as error:
            if ends_run(error):
                raise
            return failure_of(f"the reward {self.name}", error)
        return value


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores trajectories with every part, in order."""

    parts: tuple[Part, ...]

    def score(self, trajectory: Trajectory) -> ScoredTrajectory:
        """Like ``score_all``, for one."""
        return self.score_all([trajectory])[0]

    def score_all(self, trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]:
        """The weighted sum of the parts for each; a part that returns None is left out and recorded as None.

        The reward is None for a trajectory that infrastructure ended, if every part returns None, and where a part that
        has a weight raises or gives what is not a finite number: the first such failure is put on record in the
        trajectory.
        """
        played = [position for position, trajectory in enumerate(trajectories) if trajectory.scorable]
        values: list[list[Value]] = [[None] * len(self.parts) for _ in trajectories]
        for column, part in enumerate(self.parts):
            found = part.values([trajectories[position] for position in played])
            _report(part.name, found)
            for position, value in zip(played, found, strict=True):
                values[position][column] = value
        return [self._combined(*pair) for pair in zip(trajectories, values, strict=True)]

    def _combined(self, trajectory: Trajectory, values: Sequence[Value]) -> ScoredTrajectory:
        given = list(zip(self.parts, values, strict=True))
        known = {part.name: None if isinstance(value, Failure) else value for part, value in given}
        terms = [part.weight * value for part, value in given if value is not None and not isinstance(value, Failure)]
        reward = sum(terms) if terms else None
        failures = [value for part, value in given if isinstance(value, Failure) and part.weight]
        if reward is not None and not math.isfinite(reward):
            failures.append(Failure("the sum of the rewards", f"OverflowError: it is {reward}"))
        if failures:
            return ScoredTrajectory(replace(trajectory, failure=failures[0]), None, known)
        return ScoredTrajectory(trajectory, reward, known)


def make_scorer(settings: Sequence[RewardSettings]) -> Scorer:
    """The scorer for these settings. Raises ConfigError for an empty list or two parts with the same name."""
    if not settings:
        raise ConfigError("no reward is set", "for example rewards: [{kind: exact_match}]")
    names = [one.label for one in settings]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two rewards are called '{name}'", "give one of them another name:")
    return Scorer(tuple(Part(one.label, one.weight, one.open()) for one in settings))


def _report(name: str, values: Sequence[Value]) -> None:
    failures = [value for value in values if isinstance(value, Failure)]
    if failures:
        log.warning("%s: %d of %d not scored: %s", name, len(failures), len(values), failures[0].error)
