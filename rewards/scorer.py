"""Combines rewards: a weighted sum that distinguishes zero from "could not be scored"."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

from rewards.config import RewardSettings
from sleuth.errors import ConfigError, ScoringError, first_line
from sleuth.protocols import BatchReward, Reward
from sleuth.types import ScoredTrajectory, Trajectory

log = logging.getLogger("sleuth.rewards")

Value = float | None | ScoringError
"""What a part says of a trajectory: a number, that it does not apply, or why it could not be worked out."""


@dataclass(frozen=True, slots=True)
class Part:
    """A reward with its weight and the name under which its value is recorded."""

    name: str
    weight: float
    reward: Reward

    def values(self, trajectories: Sequence[Trajectory]) -> list[Value]:
        """One for each trajectory. Raises ConfigError for what is not a finite number."""
        if isinstance(self.reward, BatchReward):
            given = list(self.reward.score_all(trajectories))
            if len(given) != len(trajectories):
                raise ConfigError(
                    f"the reward {self.name} gave {len(given)} values for {len(trajectories)} trajectories"
                )
        else:
            given = [_attempt(self.reward, trajectory) for trajectory in trajectories]
        return [self._checked(value, trajectory) for value, trajectory in zip(given, trajectories, strict=True)]

    def _checked(self, given: Value, trajectory: Trajectory) -> Value:
        if given is None or isinstance(given, ScoringError):
            return given
        try:
            value = float(given)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ConfigError(
                f"the reward {self.name} gave {given!r} for question '{trajectory.question.id}'",
                "a reward is a finite number, or None where it does not apply",
            )
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

        The reward is None for a trajectory that infrastructure ended, where a part that has a weight could not be
        worked out, and if every part returns None.
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
        known = {
            part.name: None if isinstance(value, ScoringError) else value
            for part, value in zip(self.parts, values, strict=True)
        }
        failed = any(isinstance(v, ScoringError) and p.weight for p, v in zip(self.parts, values, strict=True))
        terms = [part.weight * value for part in self.parts if (value := known[part.name]) is not None]
        return ScoredTrajectory(trajectory, sum(terms) if terms and not failed else None, known)


def make_scorer(settings: Sequence[RewardSettings]) -> Scorer:
    """The scorer for these settings. Raises ConfigError for an empty list or two parts with the same name."""
    if not settings:
        raise ConfigError("no reward is set", "for example rewards: [{kind: exact_match}]")
    names = [one.label for one in settings]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two rewards are called '{name}'", "give one of them another name:")
    return Scorer(tuple(Part(one.label, one.weight, one.open()) for one in settings))


def _attempt(reward: Reward, trajectory: Trajectory) -> Value:
    try:
        return reward.score(trajectory.question, trajectory)
    except ScoringError as error:
        return error


def _report(name: str, values: Sequence[Value]) -> None:
    failures = [value for value in values if isinstance(value, ScoringError)]
    if failures:
        log.warning("%s: %d of %d not scored: %s", name, len(failures), len(values), first_line(failures[0]))
