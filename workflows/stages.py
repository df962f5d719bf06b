"""A run from its world to its test metrics, stage by stage; finished stages are not repeated.

world -> policy -> demonstrations -> warmstart -> gate -> grpo -> evaluation. Each stage reads the previous stage's
output from the run folder, so a killed run continues where it stopped.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

from agent.cluster.config import MAY_DIFFER
from agent.config import WarmstartSettings
from rewards.config import reread
from sleuth.errors import ConfigError, DataError, RetrieverError
from sleuth.failures import causes
from sleuth.layout import STAGES, EvaluationLayout, RunLayout
from sleuth.leaks import without_leaks
from sleuth.protocols import MetricSink
from sleuth.runs import RunFolder
from sleuth.settings import validate
from sleuth.types import Trajectory
from workflows.checks import check_inputs, say_leaks
from workflows.cluster import train_on_cluster
from workflows.config import RunSettings, modes_of
from workflows.context import StageContext
from workflows.demonstrations import make_demonstrations
from workflows.gate import pass_gate
from workflows.golds import check_golds, questions_of
from workflows.learn import learn
from workflows.wiring import (
    held_out,
    limit_threads,
    make_driver,
    make_policy,
    read_dev,
    read_questions,
    read_training,
    with_mode,
)

log = logging.getLogger("sleuth.run")

_MEMORY = ("policy.cache_bytes", "retriever.cache", "retriever.cache_bytes")
FREE = ("sinks", "threads", "grpo.report_to", "cotrain.rounds", *_MEMORY, *MAY_DIFFER)
"""Settings that a resumed run may change at any time."""


def run_stages(settings: RunSettings, *, until: str = "grpo", resume: bool, overwrite: bool) -> StageContext:
    """Run every stage in the settings, up to and including ``until``."""
    settings = _as_begun(settings) if resume else settings
    run = StageContext(settings, RunFolder(settings.out), resume)
    done = [name for name in STAGES if run.folder.stage_done(name)] if resume else []
    check_inputs(settings, until, done)
    limit_threads(settings.threads)
    plain = settings.model_dump(mode="json")
    free = (*FREE, *not_begun(run))
    before = partial(_reread, settings)
    with run.folder.claim(plain, resume=resume, overwrite=overwrite, may_differ=free, reread=before):
        _check_golds(run, until)
        for name in STAGES[: STAGES.index(until) + 1]:
            if not run.folder.stage_done(name):
                info = _WORK[name](run)
                if info is not None:
                    run.folder.mark_done(name, info)
        if until == STAGES[-1]:
            _close(run.layout)
    return run


def _check_golds(run: StageContext, until: str) -> None:
    """Before hours of work: are the gold passages of the questions among the passages that the run searches?

    A made-up world's questions fit its passages.
    """
    settings = run.settings
    left = {name for name in STAGES[: STAGES.index(until) + 1] if not run.folder.stage_done(name)}
    modes = {settings.environment.kind, *settings.evaluation.start_modes, *modes_of(settings)}
    demonstrating = settings.demonstrations is not None and "demonstrate" in left
    playing = demonstrating or ("grpo" in left and bool(modes - {"direct", "cot"}))
    if settings.retriever is None or settings.world is not None or not playing:
        return
    questions = questions_of(settings.data, settings.seed)
    if any(question.gold_ids for question in questions):
        retriever = run.open_retriever()
        assert retriever is not None
        check_golds(questions, retriever, settings.retriever.name)


def _as_begun(settings: RunSettings) -> RunSettings:
    """``settings`` with leaks treated as when the run began, unless they say how: older runs kept them."""
    folder = RunFolder(settings.out)
    if "leaks" in settings.data.model_fields_set or not folder.layout.config.exists():
        return settings
    leaks = (folder.read_config().get("data") or {}).get("leaks", "keep")
    return settings.model_copy(update={"data": settings.data.model_copy(update={"leaks": leaks})})


def _reread(settings: RunSettings, saved: dict[str, Any]) -> dict[str, Any]:
    where = "config.yaml of the run"
    saved = {**saved, "data": {"leaks": "keep", **(saved.get("data") or {})}}  # as runs did before there was a choice
    plain = validate(type(settings), saved, where).model_dump(mode="json")
    return {**plain, "rewards": reread(plain["rewards"], settings.rewards, where)}


def not_begun(run: StageContext) -> list[str]:
    """Config sections of stages that have left no output yet, nor has any later stage; a resumed run may change these.

    A skipped stage counts as begun once a later stage has.
    """
    left = {
        "demonstrations": run.folder.stage_done("demonstrate") or run.layout.demonstrations.exists(),
        "warmstart": run.folder.stage_done("warmstart") or run.layout.warmstart_checkpoints.exists(),
        "grpo": run.layout.grpo.folder.exists(),
    }
    return list(takewhile(lambda section: not left[section], reversed(left)))


def _close(layout: RunLayout) -> None:
    """Convert trajectories to Parquet: all stages are done, so none will be added."""
    from sleuth.trajectories import close_trajectories

    gate = layout.gate.existing_samples()
    evaluations = [*layout.grpo.dev_evaluations(), *layout.evaluations(), *gate]
    for folder in [layout.grpo.trajectories, *(evaluation.folder for evaluation in evaluations)]:
        close_trajectories(folder)


def _world(run: StageContext) -> dict[str, Any] | None:
    if run.settings.world is None:
        return None
    from envs.toy_world.generate import generate_world
    from envs.toy_world.write import write_world

    world = generate_world(run.settings.world)
    write_world(world, run.layout.world, overwrite=True)
    return {}


def _policy(run: StageContext) -> dict[str, Any] | None:
    if run.settings.policy.tiny is None:
        return None
    from agent.tiny import build_tiny_policy
    from envs.toy_world.write import read_vocabulary

    vocabulary = read_vocabulary(run.layout.world)
    calls = run.settings.environment.protocol == "hermes"
    build_tiny_policy(run.layout.start, vocabulary, run.settings.policy.tiny, run.settings.seed, calls=calls)
    return {}


def _start(run: StageContext) -> dict[str, Any] | None:
    modes = run.settings.evaluation.start_modes
    return {mode: evaluate_policy(run, "policy", mode) for mode in modes} if modes else None


def _warmstart(run: StageContext) -> dict[str, Any] | None:
    settings = run.settings.warmstart
    if settings is None:
        return None
    from agent.warmstart import warm_start

    learned, leaks = _learned(run, settings)
    warm_start(
        settings,
        run.settings.policy,
        run.policy_after("policy"),
        learned,
        run.layout.warmstart,
        seed=run.settings.seed,
        sink=_stage_sink(run, "warmstart"),
        work=run.layout.warmstart_checkpoints,
        resume=run.resume,
    )
    found = {mode: evaluate_policy(run, "warmstart", mode) for mode in _test_modes(run)}
    return found if settings.trajectories is None else {**found, "leaks": leaks}


def _learned(run: StageContext, settings: WarmstartSettings) -> tuple[list[Trajectory], int]:
    """What the warm start learns from: the run's demonstrations, or given trajectories without those that leak, and
    how many of them do.
    """
    if settings.trajectories is None:
        return _learned_from(run.layout.demonstrations, settings.min_reward), 0
    given = _learned_from(settings.trajectories, settings.min_reward)
    kept, leaks = without_leaks(given, held_out(run.settings.data), lambda trajectory: trajectory.question)
    say_leaks(leaks, "trajectories")
    if not kept:
        raise DataError(
            f"every question of {settings.trajectories} shares a gold passage or title with data.dev or data.test",
            "name trajectories of training questions, or set data.leaks=keep",
        )
    return kept, leaks.count


def _learned_from(source: Path, min_reward: float | None) -> list[Trajectory]:
    """The trajectories of ``source``, those of every sample if it is an evaluation, with at least ``min_reward``."""
    from sleuth.trajectories import read_trajectories

    samples = [sample.folder for sample in EvaluationLayout(source).existing_samples()]
    rows = [row for part in samples or [source] for row in read_trajectories(part)]
    if not rows:
        raise DataError(f"{source} has no trajectories", "name a file of them, or the folder of one evaluation")
    if min_reward is None:
        return [row.trajectory for row in rows]
    kept = [row.trajectory for row in rows if row.reward is not None and row.reward >= min_reward]
    log.info("%d of %d trajectories have a reward of at least %g", len(kept), len(rows), min_reward)
    if not kept:
        raise DataError(f"no trajectory of {source} has a reward of {min_reward:g}", "lower warmstart.min_reward")
    return kept


def _grpo(run: StageContext) -> dict[str, Any] | None:
    settings = run.settings
    if settings.grpo is None:
        return None
    outcome = train_on_cluster(run, settings.cluster) if settings.cluster else learn(run, None)
    figures = {mode: evaluate_policy(run, "grpo", mode) for mode in _test_modes(run)}
    best = {"best_step": outcome.best_step, "best_em": outcome.best_em, "last_step": outcome.last_step}
    return {**best, "leaks": read_training(settings.data, settings.seed)[1].count, **figures}


def evaluate_policy(run: StageContext, stage: str, mode: Any) -> dict[str, Any]:
    """Greedy evaluation of the policy after ``stage`` on the test questions, or on dev if there are none.

    Raises RetrieverError if a retriever failed on some questions, or if none could be scored: the stage is then not
    done, and a resume retries them. Other failures may come back at every attempt, so that a warning has to do.
    """
    from agent.evaluate import evaluate
    from rewards.scorer import make_scorer
    from rewards.text_match import exact_match, f1

    settings = run.settings
    path, limit = settings.data.test, settings.evaluation.limit
    if path is None and settings.data.dev is None:
        raise ConfigError("there are no questions to evaluate on", "set data.test or data.dev")
    policy, codec = make_policy(settings.policy.model_copy(update={"model": run.policy_after(stage), "tiny": None}))
    retriever = run.open_retriever() if mode in ("search", "rag") else None
    driver = make_driver(policy, codec, with_mode(settings.environment, mode), retriever)
    out = run.layout.evaluation(stage, mode).folder
    out.mkdir(parents=True, exist_ok=True)
    report = evaluate(
        driver,
        read_questions(path, limit, settings.data.gold) if path else read_dev(settings.data, limit, settings.seed),
        metrics={"em": exact_match, "f1": f1},
        score=make_scorer(settings.rewards).score_all,
        out=out,
        batch_size=settings.evaluation.batch_size,
        resamples=settings.evaluation.bootstrap,
    )
    if report.unscored:
        said = f"{report.unscored} of {report.overall.n} questions of the evaluation {out.name} could not be scored"
        if report.stops.get("retriever_failed") or not report.overall.scored:
            raise RetrieverError(
                f"{said} ({causes(report.failures)})",
                "fix what failed, then run the same command with --resume to retry only these",
            )
        log.warning("%s (%s); no mean includes them", said, causes(report.failures))
    return {key: value for key, value in report.to_dict().items() if isinstance(value, int | float | list)}


def _test_modes(run: StageContext) -> Sequence[Any]:
    return modes_of(run.settings) if run.settings.data.test or run.settings.data.dev else []


def _stage_sink(run: StageContext, name: str) -> MetricSink:
    """Metrics of a stage before GRPO go to their own file, since their steps are not GRPO's."""
    from sleuth.sinks import ConsoleSink, JsonlSink, MultiSink

    console = [ConsoleSink({"loss": "loss", "grad_norm": "grad norm", "learning_rate": "lr"})]
    chosen: list[MetricSink] = [*console] if "console" in run.settings.sinks else []
    return MultiSink([*chosen, JsonlSink(run.layout.stage_metrics(name), keep_to=None if run.resume else -1)])


_WORK: dict[str, Callable[[StageContext], dict[str, Any] | None]] = {
    "world": _world,
    "policy": _policy,
    "start": _start,
    "demonstrate": make_demonstrations,
    "warmstart": _warmstart,
    "gate": pass_gate,
    "grpo": _grpo,
}
