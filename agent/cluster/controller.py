"""The controller: holds the versions of the weights and has rollouts played. The trainer talks only to it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any, Protocol

from agent.cluster.interface import Actor, ClusterError
from agent.cluster.pool import Crew, Patience, RolloutPool
from agent.rollout import RolloutDriver
from sleuth.types import Question, Sampling, Trajectory


class Control(Protocol):
    """The controller's interface for the trainer; it may be in the same process or an actor."""

    def publish(self, version: int, boxed: list[Any]) -> None:
        """Store a reference to weights, boxed so that Ray does not resolve it. Old versions are dropped."""
        ...

    def forget(self) -> None:
        """Drop all weights: the learners have restarted, and their earlier weights no longer exist."""
        ...

    def run(
        self, version: int, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Trajectory]: ...

    def counts(self) -> dict[str, float]: ...


class Controller:
    """Plays batches on the workers with the requested version; ``keep`` versions are held."""

    def __init__(self, workers: Sequence[Actor], template: RolloutDriver, patience: Patience, keep: int) -> None:
        self.pool = RolloutPool(Crew(workers), template, patience)
        self.pool.wait_ready()
        self._keep = keep
        self._weights: dict[int, Any] = {}
        self._published = threading.Condition()

    def publish(self, version: int, boxed: list[Any]) -> None:
        with self._published:
            self._weights.pop(version, None)
            self._weights[version] = boxed[0]
            # The oldest by publication: learners restarted from a checkpoint publish lower numbers than before.
            for old in list(self._weights)[: -self._keep]:
                del self._weights[old]
            self._published.notify_all()

    def forget(self) -> None:
        with self._published:
            self._weights.clear()

    def run(
        self, version: int, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Trajectory]:
        return self.pool.run(self._await(version), questions, sampling, seeds)

    def counts(self) -> dict[str, float]:
        return asdict(self.pool.counts)

    def _await(self, version: int) -> Any:
        """Learners do not publish and request in lockstep: wait for the one that publishes."""
        with self._published:
            if not self._published.wait_for(lambda: version in self._weights, timeout=60.0):
                raise ClusterError(f"version {version} of the weights was never published")
            return self._weights[version]


class RemoteController:
    """The controller as an actor; picklable, for learners in other processes."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor

    def publish(self, version: int, boxed: list[Any]) -> None:
        self._actor.call("publish", version, boxed).result()

    def forget(self) -> None:
        self._actor.call("forget").result()

    def run(
        self, version: int, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Trajectory]:
        answer: Future[list[Trajectory]] = self._actor.call("run", version, questions, sampling, seeds)
        return answer.result()

    def counts(self) -> dict[str, float]:
        answer: Future[dict[str, float]] = self._actor.call("counts")
        return answer.result()
