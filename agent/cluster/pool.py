"""Rollout workers as one driver: questions are distributed in shards, and each is returned exactly once."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from agent.cluster.interface import Actor, ClusterError, WorkerLostError
from agent.rollout import RolloutDriver
from sleuth.failures import ends_run
from sleuth.types import Failure, Observation, Question, Sampling, Segment, Trajectory

log = logging.getLogger("sleuth.cluster")
_POLL_S = 0.2
_RECALL_S = 0.5


@dataclass(frozen=True, slots=True)
class Played:
    """A shard's trajectories in order, the seconds they took, and the seconds of loading weights before."""

    trajectories: list[Trajectory]
    seconds: float
    loading: float
    worker: str


@dataclass(slots=True)
class PoolCounts:
    """Counts since the pool was made: questions in = ``trajectories`` + ``unscored``.

    ``lost`` shards were played again, ``resent`` ones were late, ``dropped`` ones returned after another copy had.
    """

    workers: int
    questions: int = 0
    trajectories: int = 0
    unscored: int = 0
    shards: int = 0
    lost: int = 0
    resent: int = 0
    dropped: int = 0
    busy_s: float = 0.0
    loading_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a shard may take, how often it may be lost, how long workers may take to start; seconds."""

    deadline_s: float
    retries: int
    start_s: float


@dataclass(slots=True, eq=False)
class _Shard:
    """Rows ``start`` to ``stop`` of a batch. ``due`` is the deadline of the copy being played."""

    start: int
    stop: int
    lost: int = 0
    out: int = 0
    late: bool = False
    due: float = float("inf")
    done: bool = False
    played: Any = None


class Crew:
    """Which workers are idle, and which are lent to a batch. A lost one is called until it is back, and not lent
    before."""

    def __init__(self, workers: Sequence[Actor]) -> None:
        self.all = list(workers)
        self._idle: deque[Actor] = deque()
        self._lent: set[int] = set()
        self._gone: list[WorkerLostError] = []
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        for worker in workers:
            self._recall(worker)

    def take(self) -> Actor | None:
        """An idle worker, or None. Raises if none can ever be idle again."""
        with self._changed:
            if self._error:
                raise self._error
            if len(self._gone) == len(self.all):
                raise ClusterError(
                    f"every rollout worker is gone; the last: {self._gone[-1]}",
                    "what was saved is intact: repair the node, then --resume",
                )
            if not self._idle:
                return None
            worker = self._idle.popleft()
            self._lent.add(id(worker))
            return worker

    def any_there(self) -> bool:
        """Whether any worker is idle or playing for some batch."""
        with self._changed:
            return bool(self._idle or self._lent)

    def give(self, worker: Actor) -> None:
        with self._changed:
            self._lent.discard(id(worker))
            self._idle.append(worker)
            self._changed.notify_all()

    def lost(self, worker: Actor, error: WorkerLostError) -> None:
        log.warning("%s", error)
        with self._changed:
            self._lent.discard(id(worker))
        if error.for_good:
            with self._changed:
                self._gone.append(error)
                self._changed.notify_all()
        else:
            timer = threading.Timer(_RECALL_S, self._recall, [worker])
            timer.daemon = True
            timer.start()

    def wait_ready(self, timeout: float) -> None:
        """Wait for all workers to start; one that cannot be made raises its own error."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not self._error and len(self._idle) + len(self._gone) < len(self.all):
                if not self._changed.wait(max(deadline - time.monotonic(), 0.0)):
                    raise ClusterError(
                        f"{len(self._idle)} of {len(self.all)} rollout workers started within {timeout:g} s",
                        "are there nodes with enough CPUs and GPUs? see: ray status",
                    )
            if self._error:
                raise self._error

    def _recall(self, worker: Actor) -> None:
        worker.call("status").add_done_callback(lambda answer: self._answered(worker, answer))

    def _answered(self, worker: Actor, answer: Future[Any]) -> None:
        error = answer.exception()
        if error is None:
            self.give(worker)
        elif isinstance(error, WorkerLostError):
            self.lost(worker, error)
        else:
            with self._changed:
                self._error = error
                self._changed.notify_all()


class RolloutPool:
    """Plays batches on a crew. Trajectories are returned in the order of the questions.

    ``template`` is the controller's own driver, which never plays: its environment and codec define the trajectory of
    an unplayed question.
    """

    def __init__(self, crew: Crew, template: RolloutDriver, patience: Patience) -> None:
        self.template = template
        self.crew = crew
        self.counts = PoolCounts(workers=len(crew.all))
        self._patience = patience
        self._lock = threading.Lock()

    def run(
        self, weights: Any, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Trajectory]:
        """One trajectory per question, sampled with ``weights``, a reference from ``Cluster.put``, or, if that is None,
        with those that the workers were opened with.

        A question whose shard was lost or late too often ends as ``worker_lost``, unscored.
        """
        started = time.monotonic()
        shards = cut(len(questions), len(self.crew.all))
        batch = _Batch(self.crew, shards, self._patience, self.counts, self._lock)
        batch.finish(lambda s: (weights, questions[s.start : s.stop], sampling, seeds[s.start : s.stop]))
        trajectories: list[Trajectory] = []
        for shard in shards:
            asked = questions[shard.start : shard.stop]
            trajectories += shard.played.trajectories if shard.played else [self._unplayed(q) for q in asked]
        with self._lock:
            self.counts.questions += len(questions)
            self.counts.unscored += sum(s.stop - s.start for s in shards if s.played is None)
            self.counts.trajectories += sum(s.stop - s.start for s in shards if s.played)
        return _as_wall_time(trajectories, time.monotonic() - started)

    def wait_ready(self) -> None:
        """Wait for all workers to start. Raises ClusterError if they do not in time, or a worker's own error."""
        self.crew.wait_ready(self._patience.start_s)

    def _unplayed(self, question: Question) -> Trajectory:
        segments: tuple[Segment, ...] = ()
        try:
            prompt = self.template.environment().reset(question)
            segments = (Segment("prompt", prompt.token_ids),) if isinstance(prompt, Observation) else ()
        except Exception as error:  # unscored already; environments are anybody's code
            if ends_run(error):
                raise
        failure = Failure("its rollout worker", "WorkerLostError: lost or late too often")
        times = {"generate": 0.0, "retrieve": 0.0}
        return Trajectory(question, segments, (), "worker_lost", times, failure=failure)


@dataclass(slots=True)
class _Batch:
    """One batch being played by the crew."""

    crew: Crew
    shards: Sequence[_Shard]
    patience: Patience
    counts: PoolCounts
    lock: threading.Lock
    waiting: deque[_Shard] = field(default_factory=deque)
    running: dict[Future[Any], tuple[_Shard, Actor]] = field(default_factory=dict)
    stalled_since: float | None = None

    def finish(self, arguments: Any) -> None:
        self.waiting.extend(self.shards)
        self.counts.shards += len(self.shards)
        try:
            while not all(shard.done for shard in self.shards):
                self._deal(arguments)
                self._hear()
                self._chase()
        finally:  # copies whose shard is done, or all running ones if an error ends the batch
            for future, (_, worker) in self.running.items():
                future.add_done_callback(partial(self._free, worker))

    def _deal(self, arguments: Any) -> None:
        while self.waiting:
            if self.waiting[0].done:
                self.waiting.popleft()
                continue
            worker = self.crew.take()
            if worker is None:
                return
            shard = self.waiting.popleft()
            shard.out += 1
            shard.due = time.monotonic() + self.patience.deadline_s
            self.running[worker.call("play", *arguments(shard))] = (shard, worker)

    def _hear(self) -> None:
        if not self.running:
            self._stall()
            return
        self.stalled_since = None
        for future in wait(self.running, timeout=_POLL_S, return_when=FIRST_COMPLETED).done:
            shard, worker = self.running.pop(future)
            shard.out -= 1
            error = self._free(worker, future)
            if error is not None and not isinstance(error, WorkerLostError):
                raise error
            if shard.done:
                self.counts.dropped += 1
            elif error is None:
                self._take(shard, future.result())
            else:
                self._play_again(shard)

    def _stall(self) -> None:
        """No shard of this batch is running: wait for other batches or for workers to return, but not for ever."""
        now = time.monotonic()
        self.stalled_since = now if self.crew.any_there() else self.stalled_since or now
        if now - self.stalled_since > self.patience.start_s:
            raise ClusterError(
                f"no rollout worker came back within {self.patience.start_s:g} s",
                "what was saved is intact: repair the nodes, then --resume",
            )
        time.sleep(_POLL_S)

    def _take(self, shard: _Shard, played: Played) -> None:
        shard.played, shard.done = played, True
        with self.lock:
            self.counts.busy_s += played.seconds
            self.counts.loading_s += played.loading

    def _play_again(self, shard: _Shard) -> None:
        """Its worker died: the shard waits for another, unless a copy is still running or it was lost too often."""
        shard.lost += 1
        self.counts.lost += 1
        if shard.lost > self.patience.retries:
            log.warning("%d questions are left unscored: their workers died %d times", _size(shard), shard.lost)
            shard.done = True
        elif not shard.out and shard not in self.waiting:
            self.waiting.append(shard)

    def _chase(self) -> None:
        """A late shard is sent once more; if that is late too, it is given up and its workers are killed."""
        now = time.monotonic()
        for shard in self.shards:
            if shard.done or now < shard.due:
                continue
            if not shard.late:
                log.warning("%d questions are late after %g s: sent once more", _size(shard), self.patience.deadline_s)
                shard.late, shard.due = True, now + self.patience.deadline_s
                self.counts.resent += 1
                self.waiting.append(shard)
            else:
                log.warning("%d questions are late again: left unscored", _size(shard))
                shard.done = True
                for worker in [w for s, w in self.running.values() if s is shard]:
                    worker.kill()

    def _free(self, worker: Actor, answer: Future[Any]) -> BaseException | None:
        error = answer.exception()
        if isinstance(error, WorkerLostError):
            self.crew.lost(worker, error)
        else:
            self.crew.give(worker)
        return error


def cut(rows: int, parts: int) -> list[_Shard]:
    """``rows`` in order, split into at most ``parts`` shards whose sizes differ by at most one."""
    edges = [rows * part // parts for part in range(parts + 1)]
    return [_Shard(start, stop) for start, stop in itertools.pairwise(edges) if stop > start]


def _size(shard: _Shard) -> int:
    return shard.stop - shard.start


def _as_wall_time(trajectories: list[Trajectory], seconds: float) -> list[Trajectory]:
    """Workers play in parallel: scale the stages' times so that they sum to the wall time."""
    total = sum(sum(t.timings.values()) for t in trajectories)
    scale = seconds / total if total else 0.0
    return [replace(t, timings={name: s * scale for name, s in t.timings.items()}) for t in trajectories]
