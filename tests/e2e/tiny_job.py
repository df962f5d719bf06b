"""A GRPO job of seconds: a tiny policy that knows nothing, one passage, and rewards that differ from row to row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.config import GrpoSettings, PolicySettings
from agent.learning.grpo import GrpoJob, TrainingData
from agent.rollout import RolloutDriver
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from sleuth.sinks import MultiSink
from sleuth.types import Hit, Passage, Question, ScoredTrajectory

WORDS = ["Question", ":", "?", ".", "Paris", "London", "capital", "of", "France", "what", "is", "the", "city", "no"]
WORDS += ["yes"]
QUESTIONS = [Question(str(i), "what is the capital of France ?", ("Paris",)) for i in range(6)]
ENVIRONMENT = EnvironmentSettings(
    preset="minimal", chat="never", turns=3, searches=2, turn_tokens=8, observation_tokens=30, total_tokens=120
)


class AlwaysParis:
    fingerprint = "paris"

    def search(self, queries, k):
        return [[Hit(Passage("p", "Paris", "the city of Paris"), 1.0, 1)] for _ in queries]


class TokenSum:
    """Pays by the ids of the sampled tokens, so that a policy that knows nothing earns unequal rewards."""

    def score_all(self, trajectories):
        return [self.score(trajectory) for trajectory in trajectories]

    def score(self, trajectory):
        sampled = sum(sum(s.token_ids) for s in trajectory.segments if s.source == "policy")
        return ScoredTrajectory(trajectory, float(sampled % 7) if trajectory.scorable else None)


def drive(policy, codec) -> RolloutDriver:
    return RolloutDriver(policy, codec, make_environment(ENVIRONMENT, codec), AlwaysParis(), 1)


class SearchFirst:
    """Searches whatever the policy says in its first turn, so that every row holds environment tokens."""

    def __init__(self, inner):
        self._inner, self._turn = inner, 0

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def step(self, text):
        self._turn += 1
        return self._inner.step("<search> Paris </search>" if self._turn == 1 else text)


def drive_searching(policy, codec) -> RolloutDriver:
    make = make_environment(ENVIRONMENT, codec)
    return RolloutDriver(policy, codec, lambda: SearchFirst(make()), AlwaysParis(), 1)


def settings_of(**more: Any) -> GrpoSettings:
    chosen = {"steps": 4, "questions": 2, "group_size": 3, "eval_steps": 4, "save_steps": 4, "learning_rate": 1e-2}
    return GrpoSettings(**{**chosen, "schedule": "constant", **more})


def job_of(folder: Path, out: Path, settings: GrpoSettings, **more: Any) -> GrpoJob:
    """The job of training the policy in ``folder``; ``more`` replaces parts of it."""
    parts = {
        "settings": settings,
        "policy": PolicySettings(model=str(folder), device="cpu"),
        "model_name": str(folder),
        "data": TrainingData([QUESTIONS], [1.0]),
        "scorer": TokenSum(),
        "make_driver": drive,
        "evaluate": lambda _: {"em": 0.0},
        "out": out,
        "seed": 0,
        "sink": MultiSink([]),
    }
    return GrpoJob(**{**parts, **more})
