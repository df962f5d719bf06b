"""A run from its world to its test figures, stage by stage; a stage that is done is not done again.

world -> policy -> demonstrations -> warmstart -> grpo -> evaluation. Each stage reads what the one
before left in the run folder, so a killed run goes on where it was.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.cluster.config import MAY_DIFFER
from cli.checks import check_inputs
from cli.config import DEMONSTRATIONS, STAGES, RunSettings, modes_of
from cli.wiring import (
    limit_threads,
    load_training_data,
    make_driver,
    make_policy,
    make_retriever,
    make_sink,
    read_questions,
    with_mode,
)
from sleuth.artifacts import atomic_write
from sleuth.errors import ArtifactError, ConfigError, DataError, RetrieverError
from sleuth.protocols import MetricSink, Retriever
from sleuth.runs import RunFolder
from sleuth.settings import validate
from sleuth.types import Plan, Question

if TYPE_CHECKING:
    from agent.learning.grpo import GrpoOutcome
    from agent.learning.sampling import MakeSampler

log = logging.getLogger("sleuth.run")

RETRIEVER = "retriever"
"""Holds the fingerprint of the retriever that the run was started with."""


@dataclass(slots=True)
class Run:
    """A run in progress: its settings, its folder, and the retriever once it is open."""

    settings: RunSettings
    folder: RunFolder
    resume: bool
    retriever: Retriever | None = None

    @property
    def out(self) -> Path:
        return self.folder.path

    def open_retriever(self) -> Retriever | None:
        if self.retriever is None:
            self.retriever = make_retriever(self.settings.retriever)
            if self.retriever is not None:
                self._check_same_index(self.retriever.fingerprint)
        return self.retriever

    def _check_same_index(self, fingerprint: str) -> None:
        """Half a run on one index and half on another is neither."""
        known = self.out / RETRIEVER
        if not known.exists():
            atomic_write(known, fingerprint + "\n")
        elif known.read_text(encoding="utf-8").strip() != fingerprint:
            raise ArtifactError(
                f"{self.out} was started with another index or another setting of it",
                "put that one back, or take another --out",
            )

    def policy_after(self, stage: str) -> str:
        """Where the policy lies that the stages up to ``stage`` have made."""
        made = {"policy": self.out / "start", "warmstart": self.out / "warmstart", "grpo": self.out / "grpo" / "policy"}
        for name in reversed(STAGES[: STAGES.index(stage) + 1]):
            if name in made and made[name].exists():
                return str(made[name])
        if self.settings.policy.model is None:
            raise ConfigError("the run has made no policy yet", "run: sleuth train")
        return self.settings.policy.model


def run_stages(settings: RunSettings, *, until: str = "grpo", resume: bool, overwrite: bool) -> Run:
    """Do every stage that the settings ask for, up to and with ``until``."""
    run = Run(settings, RunFolder(settings.out), resume)
    done = [name for name in STAGES if run.folder.stage_done(name)] if resume else []
    check_inputs(settings, until, done)
    limit_threads(settings.threads)
    plain = settings.model_dump(mode="json")
    free = ("sinks", "threads", "grpo.report_to", *MAY_DIFFER, *not_begun(run))
    with run.folder.claim(plain, resume=resume, overwrite=overwrite, may_differ=free, reread=_reread):
        for name in STAGES[: STAGES.index(until) + 1]:
            if not run.folder.stage_done(name):
                info = _WORK[name](run)
                if info is not None:
                    run.folder.mark_done(name, info)
        if until == STAGES[-1]:
            _close(run.out)
    return run


def _reread(saved: dict[str, Any]) -> dict[str, Any]:
    return validate(RunSettings, saved, "config.yaml of the run").model_dump(mode="json")


def not_begun(run: Run) -> list[str]:
    """Sections of stages of which, and of all later ones, nothing is left: a resume may mend what was wrong in them.

    A stage that was skipped is behind a run that has come further.
    """
    left = {
        "demonstrations": run.folder.stage_done("demonstrate") or (run.out / DEMONSTRATIONS).exists(),
        "warmstart": run.folder.stage_done("warmstart") or (run.out / "warmstart_checkpoints").exists(),
        "grpo": (run.out / "grpo").exists(),
    }
    return list(takewhile(lambda section: not left[section], reversed(left)))


def _close(out: Path) -> None:
    """Every stage is done, so no trajectory will be added: from JSON lines to Parquet."""
    from sleuth.trajectories import close_trajectories

    for folder in [out / "grpo" / "trajectories", *(out / "grpo" / "dev").glob("*"), *(out / "evaluation").glob("*")]:
        close_trajectories(folder)


def _world(run: Run) -> dict[str, Any] | None:
    if run.settings.world is None:
        return None
    from envs.toy_world.generate import generate_world
    from envs.toy_world.write import write_world

    world = generate_world(run.settings.world)
    write_world(world, run.out / "world", overwrite=True)
    return {}


def _policy(run: Run) -> dict[str, Any] | None:
    if run.settings.policy.tiny is None:
        return None
    from agent.tiny import build_tiny_policy
    from envs.toy_world.write import read_vocabulary

    vocabulary = read_vocabulary(run.out / "world")
    build_tiny_policy(run.out / "start", vocabulary, run.settings.policy.tiny, run.settings.seed)
    return {}


def _start(run: Run) -> dict[str, Any] | None:
    modes = run.settings.evaluation.start_modes
    return {mode: evaluate_policy(run, "policy", mode) for mode in modes} if modes else None


def _demonstrate(run: Run) -> dict[str, Any] | None:
    settings = run.settings.demonstrations
    if settings is None:
        return None
    from agent.demonstrate import play_plans, worth_learning
    from agent.policies.loading import load_codec
    from envs.factory import make_environment
    from envs.plans import neutralised
    from envs.toy_world.plans import with_lazy_share
    from sleuth.trajectories import to_line
    from sleuth.types import ScoredTrajectory

    plans = [plan for source in settings.sources for plan in _read_plans(source)][: settings.limit]
    plans = with_lazy_share(plans, settings.lazy, run.settings.seed)
    codec = load_codec(run.policy_after("policy"))
    plans = [neutralised(plan, codec.reserved) for plan in plans]
    retriever = run.open_retriever()
    assert retriever is not None
    environment = run.settings.environment
    played = play_plans(plans, codec, make_environment(environment, codec), retriever, environment.top_k)
    kept = [t for t in played if worth_learning(t, settings.require_titles)]
    if not kept:
        ends = ", ".join(f"{stop}: {n}" for stop, n in Counter(t.stop for t in played).most_common())
        raise DataError(
            f"none of {len(played)} demonstrations is worth learning ({ends})",
            "raise environment.turn_tokens or turns, or set demonstrations.require_titles=false",
        )
    atomic_write(run.out / DEMONSTRATIONS, "".join(to_line(ScoredTrajectory(t, None)) for t in kept))
    log.info("%d demonstrations, %d of them kept", len(played), len(kept))
    return {"played": len(played), "kept": len(kept)}


def _read_plans(source: str) -> list[Plan]:
    from envs import plans

    return plans.read_plans(source) if plans.holds_plans(source) else plans.plans_from_release(source)


def _warmstart(run: Run) -> dict[str, Any] | None:
    settings = run.settings.warmstart
    if settings is None:
        return None
    from agent.warmstart import warm_start
    from sleuth.trajectories import read_trajectories

    source = settings.trajectories or run.out / DEMONSTRATIONS
    trajectories = [scored.trajectory for scored in read_trajectories(source)]
    warm_start(
        settings,
        run.settings.policy,
        run.policy_after("policy"),
        trajectories,
        run.out / "warmstart",
        seed=run.settings.seed,
        sink=_stage_sink(run, "warmstart"),
        work=run.out / "warmstart_checkpoints",
        resume=run.resume,
    )
    return {mode: evaluate_policy(run, "warmstart", mode) for mode in _test_modes(run)}


def _grpo(run: Run) -> dict[str, Any] | None:
    settings = run.settings
    if settings.grpo is None:
        return None
    if settings.cluster:
        from cli.cluster import train_on_cluster

        outcome = train_on_cluster(run, learn, settings.cluster)
    else:
        outcome = learn(run, None)
    figures = {mode: evaluate_policy(run, "grpo", mode) for mode in _test_modes(run)}
    return {"best_step": outcome.best_step, "best_em": outcome.best_em, "last_step": outcome.last_step, **figures}


def learn(run: Run, make_sampler: MakeSampler | None) -> GrpoOutcome:
    """Train with GRPO in this process; ``make_sampler`` has the rollouts played elsewhere."""
    from agent.learning.grpo import GrpoJob, train_grpo
    from rewards.scorer import make_scorer
    from sleuth.checkpoints import checkpoint_step, newest_complete

    settings = run.settings
    assert settings.grpo is not None
    dev = read_questions(settings.data.dev or "", settings.grpo.eval_limit)
    retriever = None if make_sampler else run.open_retriever()
    newest = newest_complete(run.out / "grpo" / "checkpoints") if run.resume else None
    sink = make_sink(settings, keep_to=checkpoint_step(newest) if newest else -1)
    try:
        job = GrpoJob(
            settings.grpo,
            settings.policy,
            run.policy_after("warmstart"),
            load_training_data(settings.data.train),
            make_scorer(settings.rewards),
            lambda policy, codec: make_driver(policy, codec, settings.environment, retriever),
            _dev_evaluation(run, dev),
            run.out / "grpo",
            settings.seed,
            sink,
            make_sampler,
        )
        return train_grpo(job, resume=run.resume)
    finally:
        sink.close()


def _dev_evaluation(run: Run, dev: Sequence[Question]) -> Callable[[Any], dict[str, float]]:
    """Greedy figures on the dev questions: EM and F1 in all and EM by kind, of those that could be scored; how many
    could not. Every evaluation keeps its trajectories.
    """
    from agent.evaluate import evaluate
    from cli.summary import hop_figures
    from rewards.scorer import make_scorer
    from rewards.text_match import exact_match, f1
    from sleuth.artifacts import atomic_folder

    settings = run.settings
    keep = settings.grpo is not None and settings.grpo.save_trajectories and os.environ.get("RANK", "0") == "0"

    def figures(driver: Any) -> dict[str, float]:
        with contextlib.ExitStack() as stack:
            folder = run.out / "grpo" / "dev" / f"step-{driver.policy.version:06d}"
            report = evaluate(
                driver,
                dev,
                metrics={"em": exact_match, "f1": f1},
                score=make_scorer(settings.rewards).score,
                out=stack.enter_context(atomic_folder(folder, overwrite=True)) if keep else None,
                batch_size=settings.evaluation.batch_size,
                resamples=1,
            )
        wanted = {"em": report.overall.means["em"], "f1": report.overall.means["f1"], "searches": report.searches}
        wanted["unscored"] = report.unscored or None
        wanted |= {f"em_{kind}": by.means["em"] for kind, by in report.by_kind.items()}
        chains = hop_figures({kind: by.to_dict() for kind, by in report.by_kind.items()})
        wanted["em_one_to_three_hops"] = chains[0] if chains else None
        return {name: float(value) for name, value in wanted.items() if value is not None}

    return figures


def evaluate_policy(run: Run, stage: str, mode: Any) -> dict[str, Any]:
    """Greedy evaluation of the policy after ``stage`` on the test questions (dev where there are none).

    Raises RetrieverError where questions could not be scored: the stage is not done, and a resume plays them again.
    """
    from agent.evaluate import evaluate
    from rewards.scorer import make_scorer
    from rewards.text_match import exact_match, f1

    settings = run.settings
    path = settings.data.test or settings.data.dev
    if path is None:
        raise ConfigError("nothing to evaluate on", "set data.test or data.dev")
    policy, codec = make_policy(settings.policy.model_copy(update={"model": run.policy_after(stage), "tiny": None}))
    retriever = run.open_retriever() if mode in ("search", "rag") else None
    driver = make_driver(policy, codec, with_mode(settings.environment, mode), retriever)
    out = run.out / "evaluation" / f"{stage}-{mode}"
    out.mkdir(parents=True, exist_ok=True)
    report = evaluate(
        driver,
        read_questions(path, settings.evaluation.limit),
        metrics={"em": exact_match, "f1": f1},
        score=make_scorer(settings.rewards).score,
        out=out,
        batch_size=settings.evaluation.batch_size,
        resamples=settings.evaluation.bootstrap,
    )
    if report.unscored:
        raise RetrieverError(
            f"{report.unscored} of {report.overall.n} questions of the evaluation {out.name} could not be scored",
            "the retriever failed: mend it, then the same command with --resume plays these alone",
        )
    return {key: value for key, value in report.to_dict().items() if isinstance(value, int | float | list)}


def _test_modes(run: Run) -> Sequence[Any]:
    return modes_of(run.settings) if run.settings.data.test or run.settings.data.dev else []


def _stage_sink(run: Run, name: str) -> MetricSink:
    """Figures of a stage before GRPO go to a file of their own: their steps are not GRPO's."""
    from sleuth.sinks import ConsoleSink, JsonlSink, MultiSink

    console = [ConsoleSink({"loss": "loss", "grad_norm": "grad norm", "learning_rate": "lr"})]
    chosen: list[MetricSink] = [*console] if "console" in run.settings.sinks else []
    return MultiSink([*chosen, JsonlSink(run.out / f"{name}.jsonl", keep_to=None if run.resume else -1)])


_WORK: dict[str, Callable[[Run], dict[str, Any] | None]] = {
    "world": _world,
    "policy": _policy,
    "start": _start,
    "demonstrate": _demonstrate,
    "warmstart": _warmstart,
    "grpo": _grpo,
}
