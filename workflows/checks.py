"""Checks that refuse a faulty run before any work is done, rather than after an hour of it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection
from pathlib import Path

from agent.demonstration_config import DemonstrationSource
from rewards.scorer import make_scorer
from sleuth.errors import ConfigError, DataError, MissingExtraError
from sleuth.layout import STAGES, RunLayout
from sleuth.leaks import Leaks
from sleuth.plugins import load_object
from sleuth.rows import read_rows
from workflows.config import RunSettings, modes_of
from workflows.model_checks import check_model
from workflows.sharded import check_shardable
from workflows.wiring import read_questions, read_source, read_training

log = logging.getLogger("sleuth.run")


def check_inputs(settings: RunSettings, until: str, done: Collection[str] = ()) -> None:
    """Raise the errors that the stages up to and including ``until`` would hit, as far as settings and files show.

    Stages that are ``done`` are skipped, since they read nothing any more.
    """
    reached = [stage for stage in STAGES[: STAGES.index(until) + 1] if stage not in done]
    _check_policy(settings, until)
    check_model(settings, reached, begun=bool(done))
    _check_environment(settings)
    make_scorer(settings.rewards)
    _check_questions(settings, training="grpo" in reached and settings.grpo is not None)
    if settings.retriever is not None:
        settings.retriever.check_files(settings.out)
        if settings.cluster is not None and settings.cluster.index_shards > 1:
            check_shardable(settings.retriever)
    if "demonstrate" in reached:
        _check_demonstrations(settings, until)
    if "warmstart" in reached:
        _check_warmstart(settings, until)
    if "grpo" in reached and settings.grpo:
        _check_grpo(settings)
    if "tensorboard" in settings.sinks:
        _need("tensorboard", "the TensorBoard sink")


def _check_policy(settings: RunSettings, until: str) -> None:
    from agent.policies.backends import check_backend
    from agent.policies.loading import check_device, resolve_model

    check_backend(settings.policy.backend)
    if settings.policy.model is not None:
        resolve_model(settings.policy.model)
    if settings.cluster is None and until != "demonstrate":  # a cluster's machines have their own devices
        check_device(settings.policy.device)
    if settings.policy.tiny and settings.world is None:
        raise ConfigError("policy.tiny takes its vocabulary from a made-up world", "add a world section")


def _check_environment(settings: RunSettings) -> None:
    environment = settings.environment
    if ":" in environment.kind:
        load_object(environment.kind)
    if environment.kind != "search":
        return
    from envs.prompts import PRESETS
    from envs.protocols.base import open_protocol

    open_protocol(environment).wording(PRESETS[environment.preset])
    if settings.cluster is not None:
        check_shared(settings)


def check_shared(settings: RunSettings) -> None:
    """Raise ConfigError where the retriever that a cluster's workers share cannot do what the environment asks."""
    environment = settings.environment
    if environment.kind == "search" and any(tool.kind == "open" for tool in environment.tools):
        raise ConfigError(
            "environment.tools has open, but the retriever that a cluster shares finds passages only",
            "leave open out, or do without the cluster: --set cluster=null",
        )


def _check_questions(settings: RunSettings, *, training: bool) -> None:
    """Read every file that the run does not make itself; before ``training`` say how many questions leak."""

    def is_there(path: str) -> bool:
        return settings.world is None or settings.out not in Path(path).parents

    data = settings.data
    measured = [path for path in (data.dev, data.test) if path is not None]
    for path in filter(is_there, measured):
        read_questions(path)
    if training:
        for source in data.train:
            if source.max_answer_words is not None and is_there(source.path):
                read_source(source, settings.seed, tell=True)
    if training and all(map(is_there, (*measured, *(source.path for source in data.train)))):
        say_leaks(read_training(data, settings.seed)[1], "training questions")
        return
    for source in data.train:
        if is_there(source.path):
            read_source(source, settings.seed)


def say_leaks(leaks: Leaks, what: str) -> None:
    """One line on what was dropped; none if nothing was."""
    if leaks.count:
        also = f"dev or test asks them too ({leaks.asked:,}), or " if leaks.asked else ""
        log.info(
            "%s of %s %s are dropped: %sthey share a gold passage (%s) or a gold title alone (%s) with a question of"
            " data.dev or data.test; data.leaks=keep keeps them",
            *(f"{leaks.count:,}", f"{leaks.of:,}", what, also, f"{leaks.by_passage:,}", f"{leaks.by_title:,}"),
        )


def _check_demonstrations(settings: RunSettings, until: str) -> None:
    if settings.demonstrations is None:
        if until == "demonstrate":
            raise ConfigError("the config has no demonstrations section", "add demonstrations: {sources: [FILE]}")
        return
    sources = settings.demonstrations.sources
    if settings.retriever is None and any(source.searches for source in sources):
        raise ConfigError("demonstrations need a retriever", "set retriever to an index")
    for source in sources:
        if settings.out not in Path(source.path).parents:
            _check_source(source)


def _check_source(source: DemonstrationSource) -> None:
    """Whether the first row of a source is what its kind reads."""
    from envs.plans import holds_plans
    from envs.questions import questions_from_rows
    from envs.recordings import holds_recordings, read_recordings

    if source.kind == "runs":
        read_recordings(source.path, source.limit if source.draw == "first" else None)
    elif not holds_plans(source.path):
        rows = read_rows(source.path, 1)
        if holds_recordings(rows[0]):
            raise DataError(f"{source.path} has runs of a policy, not questions", "name it as {kind: runs, path: ...}")
        questions_from_rows(rows, source.path)


def _check_warmstart(settings: RunSettings, until: str) -> None:
    if settings.warmstart is None:
        if until == "warmstart":
            raise ConfigError("the config has no warmstart section", "add warmstart: {}")
        return
    trajectories = settings.warmstart.trajectories
    if trajectories is not None and not trajectories.exists() and settings.out not in trajectories.parents:
        raise DataError(
            f"there is no {trajectories}",
            "warmstart.trajectories is what sleuth demonstrate writes, or the folder of an evaluation",
        )
    if trajectories is not None and trajectories.suffix == ".jsonl" and trajectories.exists():
        from envs.recordings import holds_recordings

        if holds_recordings(read_rows(trajectories, 1)[0]):
            raise DataError(
                f"{trajectories} has runs of others, not trajectories of ours",
                "name it in demonstrations.sources as {kind: runs, path: ...}",
            )
    made = settings.demonstrations is not None or RunLayout(settings.out).demonstrations.exists()
    if trajectories is None and not made:
        raise ConfigError(
            "the warm start has no demonstrations to learn from",
            "add demonstrations: {sources: [FILE]}, or set warmstart.trajectories",
        )


def _check_grpo(settings: RunSettings) -> None:
    from agent.learning.rollouts import training_sampling
    from agent.policies.backends import check_trainable, for_training

    assert settings.grpo is not None
    check_trainable(settings.policy)
    for_training(settings.policy, training_sampling(settings.grpo.temperature, settings.grpo.top_p))
    settings.grpo.credit.open()
    if settings.environment.kind in ("direct", "cot", "rag") and getattr(settings.grpo.credit, "needs_model", False):
        raise ConfigError(
            "grpo.credit.score information_gain judges searches, and the environment"
            f" {settings.environment.kind} makes none",
            "set environment.kind to search, or choose another credit",
        )
    if not settings.data.train or not settings.data.dev:
        raise ConfigError("grpo needs data.train and data.dev", "name question files there")
    for kind in (settings.environment.kind, *settings.evaluation.start_modes, *modes_of(settings)):
        if kind in ("search", "rag") and settings.retriever is None and ":" not in settings.environment.kind:
            raise ConfigError(f"the {kind} environment needs a retriever", "set retriever to an index")
    for reporter in settings.grpo.report_to:
        _need(reporter, f"grpo.report_to '{reporter}'")


def _need(package: str, purpose: str) -> None:
    """The extra that installs a package has the package's name."""
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(package, package, purpose)
