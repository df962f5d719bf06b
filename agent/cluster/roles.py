"""Start the roles of a run, check that they are consistent, and always shut them down."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from agent.cluster.config import ClusterSettings, RoleSettings
from agent.cluster.controller import Control, Controller, RemoteController
from agent.cluster.identity import code_identity
from agent.cluster.interface import Actor, Cluster, ClusterError, Needs, WorkerLostError, answer_of
from agent.cluster.pool import Crew, Patience, RolloutPool
from agent.cluster.retrieval import CALLERS, RetrieverClient, RetrieverPlan, RetrieverServer
from agent.cluster.source import ClusterSource
from agent.cluster.worker import OpenPolicy, RolloutWorker, WorkerPlan
from agent.codec import HFCodec
from agent.learning.rollouts import GroupRollouts
from agent.learning.sources import MakeSource, Upcoming
from agent.policies.probe import probe_tokens
from agent.rollout import RolloutDriver
from sleuth.protocols import Retriever
from sleuth.query_forms import QueryForm
from sleuth.types import Question, Sampling, Trajectory

log = logging.getLogger("sleuth.cluster")
WithRetriever = Callable[[Retriever | None], Callable[[Any, HFCodec], RolloutDriver]]
"""(retriever) -> a maker of drivers; both are sent to workers, so both must be picklable."""


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What the roles of a run are built from. ``open_index`` returns what a retriever's actor opens its index with, and
    may spawn shards; None if the environment never searches.

    ``open_policy`` names its backend, not ``auto``: all workers must sample identically. ``apart``: its engine is not
    the trainer's; ``updates``: optimizer steps that a rollout is for.
    """

    open_policy: OpenPolicy
    load_codec: Callable[[], HFCodec]
    with_retriever: WithRetriever
    open_index: Callable[[Cluster], Callable[[], Retriever]] | None
    fingerprint: str
    threads: int | None
    retriever_timeout_s: float = 60.0
    query_form: QueryForm = "query"
    updates: int = 1
    apart: bool = False


@dataclass(frozen=True, slots=True)
class Roles:
    """The actors of a run."""

    cluster: Cluster
    settings: ClusterSettings
    plan: RunPlan
    workers: Sequence[Actor]
    retrievers: Sequence[Actor]

    def controller(self, codec: HFCodec) -> Controller:
        """A controller in this process. Waits for the workers."""
        return Controller(
            self.workers, self.plan.with_retriever(None)(None, codec), _patience(self.settings), _kept(self.settings)
        )

    def player(self) -> Player:
        """Plays with the weights that the workers were opened with. Waits for the workers."""
        pool = RolloutPool(Crew(self.workers), _template(self.plan), _patience(self.settings))
        pool.wait_ready()
        return Player(pool)

    def controller_actor(self) -> RemoteController:
        """A controller that learners in other processes can reach."""
        build = _ControllerBuild(self.workers, self.plan, _patience(self.settings), _kept(self.settings))
        actor = self.cluster.spawn("controller", build, Needs("controller", concurrency=CALLERS))
        actor.call("counts").result(self.settings.start_timeout_s)
        return RemoteController(actor)

    def make_source(self) -> MakeSource:
        """For a learner in this process."""
        return source_maker(self.controller, self.cluster.put, self.settings, self.plan)


class Player:
    """Workers as a driver of evaluations."""

    def __init__(self, pool: RolloutPool) -> None:
        self._pool = pool

    def run(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[Trajectory]:
        return self._pool.run(None, questions, sampling, list(seeds or range(len(questions))))


def source_maker(
    control: Callable[[HFCodec], Control], put: Callable[[Any], Any], settings: ClusterSettings, plan: RunPlan
) -> MakeSource:
    """Makes a learner's source of rollouts, which calls ``control`` and stores weights with ``put``."""

    def make(_model: Any, codec: HFCodec, rollouts: GroupRollouts, upcoming: Upcoming) -> ClusterSource:
        return ClusterSource(
            control(codec),
            plan.with_retriever(None)(None, codec),
            put,
            rollouts,
            upcoming,
            ahead=settings.max_staleness if settings.schedule == "async" else 0,
            updates=plan.updates,
            probe=probe_tokens(codec),
            apart=plan.apart,
        )

    return make


@contextmanager
def open_roles(settings: ClusterSettings, plan: RunPlan, token: Path) -> Iterator[Roles]:
    """Retrievers and workers, shut down at the end of the block. Raises ClusterError if a node differs."""
    cluster = open_cluster(settings, _roles(settings, plan), token, room=settings.learners * settings.learner.cpus)
    try:
        code = code_identity()
        retrievers = _spawn_retrievers(cluster, settings, plan, code)
        workers = [
            cluster.spawn(
                f"worker {index}",
                _WorkerBuild(_worker_plan(plan, settings, retrievers, index, code)),
                _needs("worker", settings.worker, settings.restarts, concurrency=2),
            )
            for index in range(settings.workers)
        ]
        _check_fingerprints(retrievers, plan.fingerprint, settings.start_timeout_s)
        yield Roles(cluster, settings, plan, workers, retrievers)
    finally:
        cluster.close()


def open_cluster(
    settings: ClusterSettings, roles: Sequence[tuple[str, float, float]], token: Path, room: float = 0.0
) -> Cluster:
    """A cluster with room for ``roles``: (name, CPUs, GPUs) each; nothing runs on it yet."""
    if settings.backend == "local":
        from agent.cluster.local import LocalCluster

        return LocalCluster()
    from agent.cluster.ray_cluster import RayCluster

    return RayCluster(settings, roles, token, room=room)


def _roles(settings: ClusterSettings, plan: RunPlan) -> list[tuple[str, float, float]]:
    workers = [("worker", settings.worker.cpus, settings.worker.gpus)] * settings.workers
    retrievers = settings.retrievers if plan.open_index is not None else 0
    return workers + [("retriever", settings.retriever.cpus, settings.retriever.gpus)] * retrievers


def _spawn_retrievers(cluster: Cluster, settings: ClusterSettings, plan: RunPlan, code: str) -> list[Actor]:
    if plan.open_index is None:
        return []
    build = _RetrieverBuild(RetrieverPlan(plan.open_index(cluster), code))
    needs = _needs("retriever", settings.retriever, settings.restarts, concurrency=CALLERS)
    return [cluster.spawn(f"retriever {index}", build, needs) for index in range(settings.retrievers)]


def _worker_plan(
    plan: RunPlan, settings: ClusterSettings, retrievers: Sequence[Actor], index: int, code: str
) -> WorkerPlan:
    client = (
        RetrieverClient(retrievers, plan.fingerprint, plan.retriever_timeout_s, index, plan.query_form)
        if retrievers
        else None
    )
    return WorkerPlan(
        open_policy=plan.open_policy,
        threads=settings.threads or plan.threads,
        make_driver=plan.with_retriever(client),
        code=code,
    )


def _check_fingerprints(retrievers: Sequence[Actor], expected: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    calls = [(actor, actor.call("fingerprint")) for actor in retrievers]
    for actor, call in calls:
        try:
            found = answer_of(call, partial(actor.call, "fingerprint"), deadline)
        except FutureTimeoutError:
            raise ClusterError(f"{actor.name} did not open its index within {timeout_s:g} s") from None
        except WorkerLostError as error:
            raise ClusterError(f"{actor.name} died while it opened its index: {error}") from None
        if found != expected:
            raise ClusterError(
                f"{actor.name} has a different index from the controller's ({found}, not {expected})",
                "every node must read the same index: put it on shared storage",
            )


@dataclass(frozen=True, slots=True)
class _WorkerBuild:
    plan: WorkerPlan

    def __call__(self) -> RolloutWorker:
        return RolloutWorker(self.plan)


@dataclass(frozen=True, slots=True)
class _RetrieverBuild:
    plan: RetrieverPlan

    def __call__(self) -> RetrieverServer:
        return RetrieverServer(self.plan)


@dataclass(frozen=True, slots=True)
class _ControllerBuild:
    workers: Sequence[Actor]
    plan: RunPlan
    patience: Patience
    keep: int

    def __call__(self) -> Controller:
        return Controller(self.workers, _template(self.plan), self.patience, self.keep)


def _template(plan: RunPlan) -> RolloutDriver:
    """A driver that never plays."""
    return plan.with_retriever(None)(None, plan.load_codec())


def _needs(role: str, settings: RoleSettings, restarts: int, concurrency: int) -> Needs:
    return Needs(role, settings.cpus, settings.gpus, restarts, concurrency)


def _patience(settings: ClusterSettings) -> Patience:
    return Patience(settings.deadline_s, settings.retries, settings.start_timeout_s)


def _kept(settings: ClusterSettings) -> int:
    """Number of versions that may still be requested: those of running rollouts, the newest, and a spare."""
    return 2 + (settings.max_staleness if settings.schedule == "async" else 0)
