"""The trainer's side: weights out, trajectories in; at once, or played ahead by weights a bounded number old."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from agent.cluster.controller import Control
from agent.cluster.weights import snapshot
from agent.learning.rollouts import GroupRollouts, RolloutRecord
from agent.learning.sampling import Upcoming, gathered, place_of
from agent.rollout import RolloutDriver
from sleuth.errors import TrainingError
from sleuth.types import Question, Sampling, Trajectory


@dataclass(frozen=True, slots=True)
class Version:
    """Stands where a driver has its policy: which weights sample."""

    version: int


class RemoteDriver:
    """Like ``RolloutDriver``, but episodes are played by the cluster with ``version`` of the weights."""

    def __init__(self, control: Control, template: RolloutDriver, version: int) -> None:
        self._control = control
        self._template = template
        self.codec = template.codec
        self.environment = template.environment
        self.policy = Version(version)

    def at(self, version: int) -> RemoteDriver:
        return RemoteDriver(self._control, self._template, version)

    def run(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[Trajectory]:
        return self._control.run(self.policy.version, questions, sampling, list(seeds or range(len(questions))))


class ClusterSampler:
    """Publishes the trainer's weights once a version and plays on the cluster.

    With ``ahead`` 0 a rollout is played when the trainer asks for it. Otherwise the next ``ahead`` rollouts are under
    way while it learns, each by the newest weights there were when it was begun: at most ``ahead`` rollouts old when
    it is learned from, whatever the timing, so that an asynchronous run can be repeated.
    """

    def __init__(
        self,
        control: Control,
        template: RolloutDriver,
        put: Callable[[Any], Any],
        *,
        ahead: int,
        updates: int,
        probe: Sequence[int] = (),
    ) -> None:
        self.driver = RemoteDriver(control, template, -1)
        self.stale = ahead > 0
        self._control = control
        self._put = put
        self._ahead = ahead
        self._updates = updates
        self._probe = probe
        self._player = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._under_way: dict[int, tuple[list[str], Future[RolloutRecord]]] = {}
        self._broadcast_s = 0.0
        self._before: dict[str, float] = {}
        self._since = time.perf_counter()

    @contextmanager
    def refreshed(self, trainer: Any) -> Iterator[None]:
        version = int(trainer.state.global_step)
        if self.driver.policy.version < 0:
            if trainer.accelerator.is_main_process:
                self._control.forget()
            trainer.accelerator.wait_for_everyone()
        if version != self.driver.policy.version:
            started = time.perf_counter()
            with gathered(trainer) as model:
                if trainer.accelerator.is_main_process:
                    self._control.publish(version, [self._put(snapshot(model, version, self._probe))])
            self._broadcast_s = time.perf_counter() - started
            self.driver.policy = Version(version)
        yield

    def play(self, rollouts: GroupRollouts, prompts: list[str], upcoming: Upcoming, trainer: Any) -> RolloutRecord:
        started = time.perf_counter()
        step, offset = int(trainer.state.global_step), place_of(prompts, trainer)
        if not self._ahead:
            record = rollouts.play(prompts, step, offset)
        else:
            self._begin(rollouts, {step: prompts} | self._coming(upcoming, step), offset)
            planned, future = self._under_way.pop(step)
            if planned != prompts:
                raise TrainingError("the trainer asks for other questions than were played ahead")
            record = future.result()
        return self._with_figures(record, step, time.perf_counter() - started)

    def close(self) -> None:
        """Play no more ahead; what is under way ends with the cluster."""
        self._player.shutdown(wait=False, cancel_futures=True)

    def _coming(self, upcoming: Upcoming, step: int) -> dict[int, list[str]]:
        found = {step + n * self._updates: upcoming(n) for n in range(1, self._ahead + 1)}
        return {at: prompts for at, prompts in found.items() if prompts is not None}

    def _begin(self, rollouts: GroupRollouts, wanted: dict[int, list[str]], offset: int) -> None:
        driver = self.driver.at(self.driver.policy.version)
        for at, prompts in wanted.items():
            if at not in self._under_way:
                future = self._player.submit(rollouts.play, prompts, at, offset, driver)
                self._under_way[at] = (prompts, future)

    def _with_figures(self, record: RolloutRecord, step: int, waited: float) -> RolloutRecord:
        """Add what the cluster did; the stages of a rollout that was played ahead shrink to what was waited for."""
        stages = [f"time/{stage}" for stage in ("generate", "retrieve", "score")]
        played = sum(record.metrics[stage] for stage in stages)
        if self._ahead and played:
            record.metrics |= {stage: record.metrics[stage] * waited / played for stage in stages}
        counts, now = self._control.counts(), time.perf_counter()
        wall = now - self._since
        busy = counts["busy_s"] - self._before.get("busy_s", 0.0)
        record.metrics |= {
            "cluster/staleness": float(step - record.version),
            "cluster/waited": waited,
            "cluster/broadcast": self._broadcast_s,
            "cluster/worker_idle": max(0.0, 1.0 - busy / (wall * counts["workers"])),
            "cluster/lost": counts["lost"] - self._before.get("lost", 0.0),
            "cluster/resent": counts["resent"] - self._before.get("resent", 0.0),
        }
        self._before, self._since = counts, now
        return record
