"""The stage before GRPO that samples as GRPO will, and lets a policy through that has something to learn from."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from typing import Any

from agent.config import GateSettings
from sleuth.artifacts import fingerprint_of, weights_stamp
from sleuth.errors import TrainingError
from sleuth.layout import read_record, write_record
from sleuth.seeding import derive_seed
from sleuth.types import Question, ScoredTrajectory
from workflows.config import RunSettings
from workflows.context import StageContext
from workflows.play import played
from workflows.wiring import load_training_data, make_driver, make_policy

log = logging.getLogger("sleuth.run")


def pass_gate(run: StageContext) -> dict[str, Any] | None:
    """The figures of a policy that may be trained. Raises TrainingError for another, unless it is only to warn.

    What was sampled is kept: an interrupted gate goes on, and another verdict on the same samples needs no new ones.
    """
    from agent.gate import gate_figures, shortfall

    settings = run.settings
    if settings.grpo is None or settings.grpo.gate is None:
        return None
    gate = settings.grpo.gate
    questions = gate_questions(settings, gate)
    _sample(run, gate, questions)
    groups: dict[str, list[ScoredTrajectory]] = {question.id: [] for question in questions}
    for part in run.layout.gate.samples(gate.group_size):
        for row in played(part):
            groups[row.trajectory.question.id].append(row)
    figures = gate_figures(list(groups.values()))
    environment = settings.environment
    may = environment.kind == "search" and environment.searches > 1
    wrong = shortfall(figures, gate, may_search_again=may)
    found = {**figures.to_dict(), "passed": wrong is None, "line": figures.line()}
    write_record(run.layout.gate.metrics, found)
    log.info("gate before GRPO: %s", figures.line())
    if wrong is not None:
        what, change = f"not ready for GRPO: {wrong[0]}", f"{wrong[1]}; grpo.gate has the bounds"
        if gate.on_failure == "stop":
            raise TrainingError(what, change)
        log.warning("%s (%s)", what, change)
    return found


def gate_questions(settings: RunSettings, gate: GateSettings) -> list[Question]:
    """Distinct questions of the training mixture, drawn by the run's seed; all of them if there are no more."""
    from agent.learning.mixture import mixture

    data = load_training_data(settings.data, settings.seed)
    questions = data.questions
    sizes = [len(source) for source in data.sources]
    draws = mixture(sizes, data.weights, 8 * gate.questions, derive_seed(settings.seed, "gate") % 2**32)
    chosen = {questions[place].id: questions[place] for place in draws}
    return list(chosen.values())[: gate.questions]


def _sample(run: StageContext, gate: GateSettings, questions: Sequence[Question]) -> None:
    from agent.evaluate import evaluate
    from agent.learning.rollouts import training_sampling
    from rewards.scorer import make_scorer

    settings, kept = run.settings, run.layout.gate
    assert settings.grpo is not None
    model = run.policy_after("warmstart")
    retriever = run.open_retriever()
    sampling = training_sampling(settings.grpo.temperature, settings.grpo.top_p)
    identity = {
        "settings": settings.model_dump(mode="json", include={"seed", "environment", "rewards"}),
        "policy": [model, *weights_stamp(model)],
        "retriever": retriever.fingerprint if retriever else None,
        "sampling": [sampling.temperature, sampling.top_p, gate.group_size],
        "questions": [question.id for question in questions],
    }
    stamp = {"fingerprint": fingerprint_of(identity)}
    if read_record(run.layout.gate_identity) != stamp:
        shutil.rmtree(kept.folder, ignore_errors=True)
        kept.folder.mkdir(parents=True)
        write_record(run.layout.gate_identity, stamp)
    policy, codec = make_policy(settings.policy.model_copy(update={"model": model, "tiny": None}))
    try:
        driver = make_driver(policy, codec, settings.environment, retriever)
        for number, part in enumerate(kept.samples(gate.group_size)):
            part.folder.mkdir(exist_ok=True)
            evaluate(
                driver,
                questions,
                metrics={},
                score=make_scorer(settings.rewards).score_all,
                out=part.folder,
                sampling=sampling,
                batch_size=settings.evaluation.batch_size,
                seed=derive_seed(settings.seed, "gate", number),
                resamples=1,
            )
    finally:
        getattr(policy, "close", lambda: None)()
