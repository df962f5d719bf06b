"""The rollout worker: a policy with its own copy of the weights, and the driver that plays episodes with it."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from agent.cluster.identity import check_identity
from agent.cluster.pool import Played
from agent.codec import HFCodec
from agent.rollout import RolloutDriver
from sleuth.memory import peak_mib
from sleuth.protocols import Weights
from sleuth.types import Question, Sampling

OpenPolicy = Callable[[], tuple[Any, HFCodec]]
"""() -> policy and codec, opened in the worker; picklable."""
MakeDriver = Callable[[Any, HFCodec], RolloutDriver]
"""(policy, codec) -> driver; it is sent to the workers, so it must be picklable."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What a worker is built from. ``code`` is the hash of the controller's code, which the worker's must equal."""

    open_policy: OpenPolicy
    threads: int | None
    make_driver: MakeDriver
    code: str


class RolloutWorker:
    """Plays shards of questions, each with the version of the weights sent with it, or with those it was opened with.

    A restarted worker has no state: it gets the weights with its first shard, as always.
    """

    def __init__(self, plan: WorkerPlan) -> None:
        check_identity(plan.code)
        if plan.threads:
            import torch

            torch.set_num_threads(plan.threads)
        self._policy, codec = plan.open_policy()
        self._driver = plan.make_driver(self._policy, codec)
        self._version = -1
        self._playing = threading.Lock()

    def play(
        self, weights: Weights | None, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int]
    ) -> Played:
        with self._playing:
            started = time.perf_counter()
            if weights is not None and weights.version != self._version:
                self._policy.load(weights)
                self._version = weights.version
            loaded = time.perf_counter()
            trajectories = self._driver.run(questions, sampling, seeds)
            return Played(trajectories, time.perf_counter() - loaded, loaded - started, _where())

    def status(self) -> dict[str, Any]:
        """Process, host, version of the weights, whether it is playing, and peak memory in MiB."""
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "version": self._version,
            "playing": self._playing.locked(),
            "peak_mib": peak_mib(),
        }


def _where() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
