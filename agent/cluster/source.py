"""The trainer's side of a cluster: publishes weights, gets rollouts, either on demand or played ahead."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from agent.cluster.controller import Control
from agent.learning.rollouts import GroupRollouts, RolloutRecord
from agent.learning.sources import Upcoming, first_row, gathered, model_for
from agent.policies.weights import LiveWeights, send
from agent.rollout import RolloutDriver
from sleuth.errors import TrainingError
from sleuth.types import Question, Sampling, Trajectory


@dataclass(frozen=True, slots=True)
class Version:
    """In place of a driver's policy: which weights sample."""

    version: int


class RemoteDriver:
    """Like ``RolloutDriver``, but the cluster plays the episodes, with ``version`` of the weights."""

    def __init__(self, control: Control, template: RolloutDriver, version: int) -> None:
        self._control = control
        self.codec = template.codec
        self.environment = template.environment
        self.policy = Version(version)

    def run(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[Trajectory]:
        return self._control.run(self.policy.version, questions, sampling, list(seeds or range(len(questions))))


class ClusterSource:
    """Publishes each version of the trainer's weights once and plays on the cluster.

    With ``ahead`` 0 a rollout is played when the trainer asks for it. Otherwise the next ``ahead`` rollouts are played
    during the update, each with the newest weights at its start: they are at most ``ahead`` rollouts old when they are
    used, independent of timing, so that an asynchronous run is reproducible. What the trained model has to judge is
    judged when a rollout is used, with the weights of then.
    """

    def __init__(
        self,
        control: Control,
        template: RolloutDriver,
        put: Callable[[Any], Any],
        rollouts: GroupRollouts,
        upcoming: Upcoming,
        *,
        ahead: int,
        updates: int,
        probe: Sequence[int] = (),
        apart: bool = False,
    ) -> None:
        self.stale = ahead > 0
        self.apart = apart
        self._driver = RemoteDriver(control, template, -1)
        self._control = control
        self._template = template
        self._put = put
        self._rollouts = rollouts
        self._upcoming = upcoming
        self._ahead = ahead
        self._updates = updates
        self._probe = probe
        self._player = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._under_way: dict[int, tuple[list[str], Future[RolloutRecord]]] = {}
        self._broadcast_s = 0.0
        self._before: dict[str, float] = {}
        self._since = time.perf_counter()

    @contextmanager
    def current(self, trainer: Any) -> Iterator[RemoteDriver]:
        version = int(trainer.state.global_step)
        if self._driver.policy.version < 0:
            if trainer.accelerator.is_main_process:
                self._control.forget()
            trainer.accelerator.wait_for_everyone()
        if version != self._driver.policy.version:
            started = time.perf_counter()
            with gathered(trainer) as model:
                if trainer.accelerator.is_main_process:
                    self._control.publish(version, [self._put(send(LiveWeights(version, model, self._probe)))])
            self._broadcast_s = time.perf_counter() - started
            self._driver = RemoteDriver(self._control, self._template, version)
        yield self._driver

    def rollout(self, prompts: list[str], trainer: Any) -> RolloutRecord:
        with self.current(trainer) as driver:
            started = time.perf_counter()
            step, offset = int(trainer.state.global_step), first_row(len(prompts), trainer)
            if not self._ahead:
                with model_for(self._rollouts, trainer) as model:
                    record = self._rollouts.play(prompts, step, offset, driver, model)
            else:
                self._begin({step: prompts} | self._coming(trainer, len(prompts)), offset, driver)
                planned, future = self._under_way.pop(step)
                if planned != prompts:
                    raise TrainingError("the trainer asks for questions that were not the ones played ahead")
                record = future.result()
            waited = time.perf_counter() - started - record.metrics.get("time/credit", 0.0)
            record = self._with_figures(record, step, waited)
        if self._ahead and self._rollouts.needs_model:
            with model_for(self._rollouts, trainer) as model:
                return self._rollouts.judge(record, model)
        return record

    def close(self) -> None:
        """Stop playing ahead; running rollouts end with the cluster."""
        self._player.shutdown(wait=False, cancel_futures=True)

    def _coming(self, trainer: Any, rows: int) -> dict[int, list[str]]:
        step = int(trainer.state.global_step)
        found = {step + n * self._updates: self._upcoming(trainer, rows, n) for n in range(1, self._ahead + 1)}
        return {at: prompts for at, prompts in found.items() if prompts is not None}

    def _begin(self, wanted: dict[int, list[str]], offset: int, driver: RemoteDriver) -> None:
        for at, prompts in wanted.items():
            if at not in self._under_way:
                future = self._player.submit(self._rollouts.play, prompts, at, offset, driver)
                self._under_way[at] = (prompts, future)

    def _with_figures(self, record: RolloutRecord, step: int, waited: float) -> RolloutRecord:
        """Add the cluster's counts; the stage times of a rollout played ahead are scaled to the time waited for it."""
        metrics = dict(record.metrics)
        stages = [f"time/{stage}" for stage in ("generate", "retrieve", "score")]
        played = sum(metrics[stage] for stage in stages)
        if self._ahead and played:
            metrics |= {stage: metrics[stage] * waited / played for stage in stages}
        counts, now = self._control.counts(), time.perf_counter()
        wall = now - self._since
        busy = counts["busy_s"] - self._before.get("busy_s", 0.0)
        metrics |= {
            "cluster/staleness": float(step - record.version),
            "cluster/waited": waited,
            "cluster/broadcast": self._broadcast_s,
            "cluster/worker_idle": max(0.0, 1.0 - busy / (wall * counts["workers"])),
            "cluster/lost": counts["lost"] - self._before.get("lost", 0.0),
            "cluster/resent": counts["resent"] - self._before.get("resent", 0.0),
        }
        self._before, self._since = counts, now
        return replace(record, metrics=metrics)
