"""The rollout worker: a policy with its own copy of the weights, and the driver that plays episodes with it."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agent.cluster.identity import check_identity
from agent.cluster.pool import Played
from agent.cluster.weights import Weights, load
from agent.codec import HFCodec
from agent.config import PolicySettings
from agent.rollout import RolloutDriver
from hub.config import LoraSettings
from sleuth.protocols import Policy
from sleuth.types import Question, Sampling

MakeDriver = Callable[[Any, HFCodec], RolloutDriver]
"""Policy and codec to driver; it travels to the workers, so it must be picklable."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What a worker is made from. ``code`` is the hash of the controller's code, which the worker's must equal."""

    policy: PolicySettings
    model: str
    lora: LoraSettings | None
    threads: int | None
    make_driver: MakeDriver
    code: str


class WeightedPolicy(Protocol):
    """A policy whose weights can be replaced between generations."""

    @property
    def policy(self) -> Policy: ...

    def load(self, weights: Weights) -> None: ...


class RolloutWorker:
    """Plays shards of questions, each with the version of the weights that comes with it.

    A worker that was restarted is blank: it takes the weights from its first shard, as every other time.
    """

    def __init__(self, plan: WorkerPlan) -> None:
        check_identity(plan.code)
        if plan.threads:
            import torch

            torch.set_num_threads(plan.threads)
        self._held, codec = _weighted_policy(plan)
        self._driver = plan.make_driver(self._held.policy, codec)
        self._version = -1
        self._playing = threading.Lock()

    def play(self, weights: Weights, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int]) -> Played:
        with self._playing:
            started = time.perf_counter()
            if weights.version != self._version:
                self._held.load(weights)
                self._version = weights.version
            loaded = time.perf_counter()
            trajectories = self._driver.run(questions, sampling, seeds)
            return Played(trajectories, time.perf_counter() - loaded, loaded - started, _where())

    def status(self) -> dict[str, Any]:
        """Process, host, version of the weights, whether it plays, and peak memory in MiB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "version": self._version,
            "playing": self._playing.locked(),
            "peak_mib": round(peak, 1),
        }


class _TransformersWeights:
    """A transformers model in this process, under the same adapter as the trainer's."""

    def __init__(self, plan: WorkerPlan) -> None:
        from agent.policies.loading import load_policy_model
        from agent.policies.transformers_policy import TransformersPolicy

        model, self.codec = load_policy_model(plan.policy, plan.model)
        if plan.lora and not hasattr(model, "peft_config"):
            from peft import get_peft_model

            from agent.learning.options import peft_config

            model = get_peft_model(model, peft_config(plan.lora))
        self._version = 0
        self.policy = TransformersPolicy(
            model,
            self.codec,
            version=lambda: self._version,
            max_rows=plan.policy.max_rows,
            keep_cache=plan.policy.keep_cache,
        )

    def load(self, weights: Weights) -> None:
        load(self.policy.model, weights)
        self._version = weights.version


class _VllmWeights:
    """A vLLM engine of this worker's own; new weights count once their log-probs of a probe are the trainer's."""

    def __init__(self, plan: WorkerPlan) -> None:
        from agent.policies.vllm_policy import open_vllm_policy

        self.policy, self.codec = open_vllm_policy(plan.policy, plan.model, plan.lora)

    def load(self, weights: Weights) -> None:
        from agent.policies.probe import Probe

        self.policy.update(weights.version, dict(weights.tensors()), Probe(*weights.probe) if weights.probe else None)


def _weighted_policy(plan: WorkerPlan) -> tuple[WeightedPolicy, HFCodec]:
    held: _TransformersWeights | _VllmWeights
    held = _VllmWeights(plan) if plan.policy.backend == "vllm" else _TransformersWeights(plan)
    return held, held.codec


def _where() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"
