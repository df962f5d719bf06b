"""GRPO in this process: the job described by the settings, and the dev questions that choose its best policy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sleuth.layout import GrpoOutcome
from sleuth.types import Question
from workflows.context import StageContext
from workflows.wiring import load_training_data, make_driver, make_sink, read_dev

if TYPE_CHECKING:
    from agent.learning.sources import MakeSource
    from rewards.scorer import Scorer


def learn(run: StageContext, make_source: MakeSource | None) -> GrpoOutcome:
    """Train with GRPO in this process; ``make_source`` lets the rollouts run elsewhere."""
    from agent.learning.grpo import GrpoJob, train_grpo
    from rewards.scorer import make_scorer
    from sleuth.checkpoints import checkpoint_step

    settings = run.settings
    assert settings.grpo is not None
    dev = read_dev(settings.data, settings.grpo.eval_limit)
    retriever = None if make_source else run.open_retriever()
    newest = run.layout.newest_checkpoint() if run.resume else None
    sink = make_sink(settings, keep_to=checkpoint_step(newest) if newest else -1)
    scorer = make_scorer(settings.rewards)
    try:
        job = GrpoJob(
            settings=settings.grpo,
            policy=settings.policy,
            model_name=run.policy_after("warmstart"),
            data=load_training_data(settings.data, settings.seed),
            scorer=scorer,
            make_driver=lambda policy, codec: make_driver(policy, codec, settings.environment, retriever),
            evaluate=_dev_evaluation(run, dev, scorer),
            out=run.layout.grpo.folder,
            seed=settings.seed,
            sink=sink,
            make_source=make_source,
        )
        return train_grpo(job, resume=run.resume)
    finally:
        sink.close()


def _dev_evaluation(run: StageContext, dev: Sequence[Question], scorer: Scorer) -> Callable[[Any], dict[str, float]]:
    """Greedy metrics on the dev questions: EM, F1, gold found, EM by pack or else by kind, how many were scored.

    Every evaluation keeps its trajectories. Several training processes each play their part of a batch, so the batch
    has as many times the questions; the first, whose figures count, scores them all, so that a judge is asked once.
    """
    from agent.evaluate import evaluate
    from rewards.text_match import exact_match, f1
    from sleuth.artifacts import atomic_folder
    from sleuth.failures import FailureLog
    from workflows.summary import hop_figures

    settings = run.settings
    first = os.environ.get("RANK", "0") == "0"
    keep = settings.grpo is not None and settings.grpo.save_trajectories and first

    failures = FailureLog()

    def figures(driver: Any) -> dict[str, float]:
        with contextlib.ExitStack() as stack:
            folder = run.layout.grpo.dev(driver.policy.version).folder
            report = evaluate(
                driver,
                dev,
                metrics={"em": exact_match, "f1": f1},
                score=scorer.score_all if first else None,
                out=stack.enter_context(atomic_folder(folder, overwrite=True)) if keep else None,
                batch_size=settings.evaluation.batch_size * int(os.environ.get("WORLD_SIZE", "1")),
                resamples=1,
                failures=failures,
            )
        wanted = {"em": report.overall.means["em"], "f1": report.overall.means["f1"], "searches": report.searches}
        if report.unscored:
            wanted |= {"unscored": report.unscored, "scored": report.overall.scored}
        wanted |= {"gold_recall": report.gold.recall, "alternatives_recall": report.alternatives.recall}
        wanted |= {f"em_{name}": by.answers.means["em"] for name, by in (report.by_pack or report.by_kind).items()}
        chains = hop_figures({kind: by.to_dict() for kind, by in report.by_kind.items()})
        wanted["em_one_to_three_hops"] = chains[0] if chains else None
        return {name: float(value) for name, value in wanted.items() if value is not None}

    return figures
