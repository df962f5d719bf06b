"""One evaluation, from settings to a folder of trajectories and metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleuth.artifacts import weights_stamp
from sleuth.layout import EvaluationLayout, read_record, write_record

if TYPE_CHECKING:
    from agent.evaluate import Driver, EvaluationReport
    from sleuth.protocols import Policy, Retriever
    from sleuth.types import ScoredTrajectory
    from workflows.config import RunSettings

MAY_DIFFER = ("evaluation", "policy.max_rows", "policy.keep_cache", "policy.cache_bytes", "policy.device")
"""Settings that change an evaluation's speed but not its result."""

_DRAWN = {"dev_draw": "first", "dev_max_answer_words": None, "gold": "id"}
"""Settings of the data that say which questions are asked and how they are judged, as before there was a choice."""

OnProgress = Callable[[int, int], None]
Progress = Callable[[str], AbstractContextManager[OnProgress | None]]
"""Shows progress under a title; yields a callback for (done, total)."""


def no_progress(_title: str) -> AbstractContextManager[None]:
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A finished evaluation; ``figures`` is the content of its ``metrics.json``."""

    report: EvaluationReport
    figures: Mapping[str, Any]
    folder: Path


@dataclass(slots=True)
class Opened:
    """Open policies, retrievers and workers, shared by evaluations so that each is opened only once.

    A context manager: workers on a cluster end with it.
    """

    policies: dict[str, tuple[Policy, Any]] = field(default_factory=dict)
    retrievers: dict[str, Retriever | None] = field(default_factory=dict)
    workers: dict[str, Driver] = field(default_factory=dict)
    _cluster: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_workers()

    def _end_workers(self) -> None:
        self.workers.clear()
        self._cluster.close()

    def driver(self, settings: RunSettings, retriever: Retriever | None) -> Driver:
        """What plays ``settings`` with ``retriever``: a policy in this process, or workers if there is a cluster."""
        from workflows.wiring import make_driver

        if not spread(settings):
            self._end_workers()
            policy, codec = self.policy(settings)
            return make_driver(policy, codec, settings.environment, retriever)
        from workflows.cluster import players

        key = settings.model_dump_json(include={"policy", "environment", "retriever", "cluster"})
        if key not in self.workers:
            self._end_workers()  # one policy at a time in memory
            self.policies.clear()
            self.workers[key] = self._cluster.enter_context(players(settings, retriever))
        return self.workers[key]

    def policy(self, settings: RunSettings) -> tuple[Policy, Any]:
        from workflows.wiring import make_policy

        key = settings.policy.model_dump_json()
        if key not in self.policies:
            self.policies.clear()  # one at a time in memory
            self.policies[key] = make_policy(settings.policy)
        return self.policies[key]

    def retriever(self, settings: RunSettings) -> Retriever | None:
        from workflows.wiring import make_retriever

        if settings.environment.kind in ("direct", "cot") or settings.retriever is None:
            return None
        key = settings.retriever.model_dump_json()
        if key not in self.retrievers:
            self.retrievers[key] = make_retriever(settings.retriever)
        return self.retrievers[key]


def play(
    settings: RunSettings,
    folder: Path,
    opened: Opened,
    *,
    resume: bool,
    overwrite: bool,
    progress: Progress = no_progress,
) -> Evaluation:
    """Answer each question of ``data.dev``, once or ``evaluation.samples`` times; everything is saved in ``folder``."""
    from workflows.logs import quiet_libraries

    quiet_libraries()
    check_playable(settings)
    from agent.sampled import sampled_report
    from rewards.text_match import exact_match, f1, normalise_answer
    from sleuth.runs import RunFolder
    from workflows.golds import check_golds
    from workflows.model_checks import fit_context
    from workflows.wiring import limit_threads, read_dev

    questions = read_dev(settings.data, settings.evaluation.limit, settings.seed)
    retriever = opened.retriever(settings)
    if retriever is not None and settings.retriever is not None:
        check_golds(questions, retriever, settings.retriever.name)
    settings = fit_context(settings)
    identity = _identity(settings, retriever)
    kept, chosen = EvaluationLayout(folder), settings.evaluation
    before = partial(_reread, settings)
    with RunFolder(folder).claim(identity, resume=resume, overwrite=overwrite, may_differ=MAY_DIFFER, reread=before):
        limit_threads(settings.threads, settings.policy, min(chosen.batch_size, settings.policy.max_rows))
        report = None
        for number, part in enumerate(kept.samples(chosen.samples)):
            with progress("evaluating") as on_progress:
                report = _play_once(
                    settings, questions, retriever, part.folder, number * len(questions), opened, on_progress
                )
        assert report is not None
        if chosen.samples > 1:
            samples = [played(part) for part in kept.samples(chosen.samples)]
            metrics = {"em": exact_match, "f1": f1}
            report = sampled_report(samples, metrics, normalise_answer, chosen.bootstrap)
        figures = {**report.to_dict(), **_judged(settings, kept)}
        write_record(kept.metrics, figures)
    return Evaluation(report, figures, folder)


def spread(settings: RunSettings) -> bool:
    """Whether workers on a cluster play; those of a server's policy would only ask the server."""
    server = settings.policy.backend == "openai" or (settings.policy.model or "").startswith(("http://", "https://"))
    return settings.cluster is not None and not server


def check_playable(settings: RunSettings) -> None:
    """Raise ConfigError or MissingExtraError, before anything is opened, where a cluster cannot play ``settings``."""
    if spread(settings):
        from workflows.cluster import check_cluster

        check_cluster(settings)


def batch_size(settings: RunSettings) -> int:
    """Episodes that advance together, of all workers."""
    workers = settings.cluster.workers if settings.cluster is not None and spread(settings) else 1
    return settings.evaluation.batch_size * workers


def played(evaluation: EvaluationLayout) -> list[ScoredTrajectory]:
    """The trajectories saved by an evaluation."""
    from sleuth.trajectories import read_trajectories

    return list(read_trajectories(evaluation.trajectories))


def _play_once(
    settings: RunSettings,
    questions: Sequence[Any],
    retriever: Retriever | None,
    folder: Path,
    first_seed: int,
    opened: Opened,
    on_progress: OnProgress | None,
) -> EvaluationReport:
    from agent.evaluate import evaluate
    from rewards.scorer import make_scorer
    from rewards.text_match import exact_match, f1
    from sleuth.types import Sampling

    return evaluate(
        opened.driver(settings, retriever),
        questions,
        metrics={"em": exact_match, "f1": f1},
        score=make_scorer(settings.rewards).score_all,
        out=folder,
        sampling=Sampling(settings.evaluation.temperature),
        batch_size=batch_size(settings),
        seed=settings.seed + first_seed,
        resamples=settings.evaluation.bootstrap,
        on_progress=on_progress,
    )


def _judged(settings: RunSettings, kept: EvaluationLayout) -> dict[str, Any]:
    """The judge's metrics, if there is one; verdicts are saved so that none is requested twice."""
    chosen = settings.evaluation
    if chosen.judge is None:
        return {}
    from sleuth.artifacts import text_digest
    from sleuth.judge import Judge

    rows = [row.trajectory for part in kept.samples(chosen.samples) for row in played(part)]
    asked = [(t.question.text, t.question.answers, t.answer) for t in rows if t.scorable]
    keys = [text_digest(json.dumps(row)) for row in asked]
    known = read_record(kept.judged) or {}
    verdicts = known["verdicts"] if known.get("judge") == chosen.judge.model else {}
    missing = {key: row for key, row in zip(keys, asked, strict=True) if key not in verdicts}
    judge = Judge(chosen.judge)
    try:
        for key, verdict in zip(missing, judge.verdicts(list(missing.values())), strict=True):
            verdicts[key] = verdict
    finally:
        judge.close()
        write_record(kept.judged, {"judge": chosen.judge.model, "verdicts": verdicts})
    given = [verdict for key in keys if (verdict := verdicts[key]) is not None]
    right = sum(given) / len(given) if given else None
    return {"judge": {"model": chosen.judge.model, "right": right, "judged": len(given), "asked": len(asked)}}


def _identity(settings: RunSettings, retriever: Retriever | None) -> dict[str, Any]:
    """Everything that determines the metrics; a resumed evaluation must have the same."""
    from sleuth.artifacts import file_digest

    assert settings.data.dev
    kept = settings.model_dump(mode="json", include={"policy", "environment", "rewards", "evaluation", "seed"})
    data = Path(settings.data.dev)
    drawn = settings.data.model_dump(mode="json", include=set(_DRAWN))
    return {
        **kept,
        "retriever": settings.model_dump(mode="json")["retriever"] if retriever else None,
        "retriever_fingerprint": retriever.fingerprint if retriever else None,
        "data": {"path": str(data), "sha256": file_digest(data) if data.is_file() else None, **drawn},
        "limit": settings.evaluation.limit,
        "samples": settings.evaluation.samples,
        "temperature": settings.evaluation.temperature,
        "weights": weights_stamp(settings.policy.model),
    }


def _reread(settings: RunSettings, saved: dict[str, Any]) -> dict[str, Any]:
    """``saved`` with the defaults of settings that did not exist when it was written."""
    from rewards.config import reread
    from sleuth.settings import validate
    from workflows.config import RunSettings

    where = "config.yaml of the evaluation"
    sections = ("policy", "environment", "evaluation", "retriever")
    kept = {name: saved[name] for name in sections if saved.get(name) is not None}
    read = validate(RunSettings, {"out": "evaluation", "policy": {"model": ""}, **kept}, where)
    saved = {**saved, "data": {**_DRAWN, **saved["data"]}} if "data" in saved else saved
    plain = {**saved, **read.model_dump(mode="json", include=set(kept))}
    return {**plain, "rewards": reread(saved["rewards"], settings.rewards, where)} if "rewards" in saved else plain
