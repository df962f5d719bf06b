"""A run or an evaluation on a cluster: how its roles are built, and learners in separate processes."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from agent.cluster.config import ClusterSettings
from envs.config import EnvironmentSettings
from retrieval.config import IndexedSettings, RetrieverSettings
from sleuth.errors import ArtifactError, ConfigError, MissingExtraError
from sleuth.layout import GrpoOutcome, RunLayout, write_record
from sleuth.protocols import Retriever
from sleuth.query_forms import form_of
from sleuth.runs import RunFolder
from workflows.checks import check_shared
from workflows.config import RunSettings
from workflows.context import StageContext
from workflows.learn import learn
from workflows.logs import quiet_libraries
from workflows.sharded import check_shardable, spawn_shards
from workflows.wiring import limit_threads, make_driver, make_retriever

if TYPE_CHECKING:
    from agent.cluster.controller import RemoteController
    from agent.cluster.interface import Cluster
    from agent.cluster.roles import Player, Roles, RunPlan
    from agent.cluster.worker import OpenPolicy
    from agent.codec import HFCodec
    from agent.rollout import RolloutDriver


@dataclass(frozen=True, slots=True)
class DriverMaker:
    """Makes drivers in whichever process it is sent to."""

    environment: EnvironmentSettings
    retriever: Retriever | None

    def __call__(self, policy: Any, codec: HFCodec) -> RolloutDriver:
        return make_driver(policy, codec, self.environment, self.retriever)


@dataclass(frozen=True, slots=True)
class WithRetriever:
    environment: EnvironmentSettings

    def __call__(self, retriever: Retriever | None) -> DriverMaker:
        return DriverMaker(self.environment, retriever)


@dataclass(frozen=True, slots=True)
class IndexOpener:
    settings: RetrieverSettings

    def __call__(self) -> Retriever:
        retriever = make_retriever(self.settings)
        assert retriever is not None
        return retriever


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """How a retriever's actor opens its index on a given cluster: whole, or through actors that hold its shards."""

    settings: RetrieverSettings
    cluster: ClusterSettings

    def __call__(self, cluster: Cluster) -> Callable[[], Retriever]:
        if self.cluster.index_shards == 1:
            return IndexOpener(self.settings)
        timeout_s = retriever_timeout(self.cluster, self.settings)
        return spawn_shards(cluster, self.settings, self.cluster.index_shards, self.cluster.restarts, timeout_s)


def retriever_timeout(cluster: ClusterSettings, retriever: RetrieverSettings | None) -> float:
    """Seconds within which the retriever's actors must answer."""
    return cluster.retriever_timeout_s or max(60.0, retriever.patience_s if retriever else 0.0)


def train_on_cluster(run: StageContext, settings: ClusterSettings) -> GrpoOutcome:
    """Run the GRPO stage of ``run`` with its roles on a cluster, which is shut down when this returns.

    Training that had ended before is not begun again, and needs no cluster.
    """
    from agent.cluster.roles import open_roles

    ended = GrpoOutcome.read(run.layout.grpo) if run.resume else None
    if ended is not None:
        return ended
    plan = run_plan(run)
    with open_roles(settings, plan, run.layout.token) as roles:
        if settings.learners == 0:
            return learn(run, roles.make_source())
        return learn_apart(run, roles)


def learn_apart(run: StageContext, roles: Roles) -> GrpoOutcome:
    """Train in Ray Train's processes; if one is lost, all restart from the newest checkpoint."""
    from agent.cluster.ray_learners import run_learners

    control = roles.controller_actor()
    work = LearnerWork(run.settings, run.resume, control, roles.plan)
    run_learners(work, roles.settings, run.layout.learners, run.layout.learner_starts)
    write_record(run.layout.grpo.counts, control.counts())
    outcome = GrpoOutcome.read(run.layout.grpo)
    if outcome is None:
        raise ArtifactError(
            f"the learners ended without writing {run.layout.grpo.outcome}", "is the run folder on shared storage?"
        )
    return outcome


@dataclass(frozen=True, slots=True)
class LearnerWork:
    """What each learner does, sent to its process. ``restarted`` is true if an earlier attempt was lost."""

    settings: RunSettings
    resume: bool
    control: RemoteController
    plan: RunPlan

    def __call__(self, put: Callable[[Any], Any], restarted: bool) -> None:
        from agent.cluster.roles import source_maker

        quiet_libraries()
        cluster = self.settings.cluster
        assert cluster is not None
        limit_threads(cluster.threads or self.plan.threads)
        make_source = source_maker(lambda _codec: self.control, put, cluster, self.plan)
        learn(StageContext(self.settings, RunFolder(self.settings.out), self.resume or restarted), make_source)


def run_plan(run: StageContext) -> RunPlan:
    from agent.learning.rollouts import training_sampling
    from agent.policies.backends import choose_backend, for_training, has_own_engine, open_trainable

    settings: RunSettings = run.settings
    if settings.grpo is None:
        raise ConfigError("a cluster run trains with GRPO, but the config has no grpo section", "add grpo: {}")
    retriever = run.open_retriever()
    model = run.policy_after("warmstart")
    chosen = settings.policy.model_copy(update={"backend": choose_backend(settings.policy, model)})
    policy = for_training(chosen, training_sampling(settings.grpo.temperature, settings.grpo.top_p))
    plan = _plan(settings, partial(open_trainable, policy, model, settings.grpo.lora), model, retriever)
    return replace(plan, updates=settings.grpo.updates_per_rollout, apart=has_own_engine(policy.backend))


def check_cluster(settings: RunSettings) -> None:
    """Raise MissingExtraError or ConfigError, in one line, where the cluster of ``settings`` cannot play."""
    assert settings.cluster is not None
    if settings.cluster.backend == "ray" and importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "ray", "cluster.backend 'ray'", "or play in this process: --set cluster=null")
    check_shared(settings)
    if settings.cluster.index_shards > 1 and settings.retriever is not None:
        check_shardable(settings.retriever)


@contextmanager
def players(settings: RunSettings, retriever: Retriever | None) -> Iterator[Player]:
    """A driver of evaluations: workers with the policy of ``settings``, and the actors of its retriever, which
    ``retriever`` is here. They are shut down at the end of the block.
    """
    from agent.cluster.roles import open_roles
    from agent.policies.backends import choose_backend, open_policy

    assert settings.cluster is not None
    model = settings.policy.model or ""
    chosen = settings.policy.model_copy(update={"backend": choose_backend(settings.policy, model)})
    plan = _plan(settings, partial(open_policy, chosen), model, retriever)
    with open_roles(settings.cluster, plan, RunLayout(settings.out).token) as roles:
        yield roles.player()


def _plan(settings: RunSettings, open_policy: OpenPolicy, model: str, retriever: Retriever | None) -> RunPlan:
    import torch

    from agent.cluster.roles import RunPlan
    from agent.policies.loading import load_codec

    index = None
    if settings.retriever is not None and settings.cluster is not None and retriever is not None:
        index = IndexPlan(settings.retriever, settings.cluster)
    return RunPlan(
        open_policy=open_policy,
        load_codec=partial(load_codec, model, trust_remote_code=settings.policy.trust_remote_code),
        with_retriever=WithRetriever(settings.environment),
        open_index=index,
        fingerprint=retriever.fingerprint if retriever else "",
        threads=settings.threads or torch.get_num_threads(),
        retriever_timeout_s=retriever_timeout(settings.cluster or ClusterSettings(), settings.retriever),
        query_form=form_of(retriever),
    )


def check_nodes(settings: RunSettings) -> list[str]:
    """One line per node of the cluster at ``cluster.address``. Raises ClusterError if a node runs different code."""
    from agent.cluster.ray_cluster import RayCluster, ask_every_node

    chosen = settings.cluster or ClusterSettings()
    if chosen.address is None:
        raise ConfigError("no cluster to check", "add --set cluster.address=HOST:PORT")
    cluster = RayCluster(chosen, [], RunLayout(settings.out).token)
    try:
        return ask_every_node(NodeReport(settings.retriever))
    finally:
        cluster.close()


@dataclass(frozen=True, slots=True)
class NodeReport:
    """Reports a node's code and index, as the controller would check them."""

    retriever: RetrieverSettings | None

    def __call__(self) -> dict[str, str]:
        from agent.cluster.identity import code_identity
        from sleuth.artifacts import MANIFEST, file_digest

        index = self.retriever.index if isinstance(self.retriever, IndexedSettings) else None
        manifest = index / MANIFEST if index else None
        seen = file_digest(manifest)[:12] if manifest and manifest.is_file() else "none"
        return {"code": code_identity(), "index": seen}
