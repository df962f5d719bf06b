"""Co-training from its world to its last round, stage by stage; finished stages are not repeated.

    the run's stages up to the warm start -> evaluation
    each round: rollouts -> rows -> retriever -> index -> guard -> agent -> evaluation

Rollouts and evaluations go on where a killed one stopped, trainings from their last checkpoint: a resumed run ends
with the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from retrieval.training.start import Counting
from sleuth.runs import RunFolder
from sleuth.settings import validate
from workflows.cotrain.config import CotrainRun
from workflows.cotrain.context import Cotraining, stage_name
from workflows.cotrain.evaluation import evaluate_round, summarise
from workflows.cotrain.learning import guard, index_passages, train_agent, train_retriever, train_start
from workflows.cotrain.rows import make_rows, roll_out
from workflows.play import Opened
from workflows.stages import FREE, run_stages
from workflows.wiring import limit_threads

Work = Callable[[], dict[str, Any]]


def run_cotraining(settings: CotrainRun, *, resume: bool, overwrite: bool, counting: Counting) -> list[dict[str, Any]]:
    """Run every stage that is not done; returns a row for each round, the start first."""
    run = Cotraining(settings, RunFolder(settings.out), counting)
    run_stages(settings, until="policy", resume=resume, overwrite=overwrite)
    if settings.cotrain.start is not None and not run.folder.stage_done("start-retriever"):
        train_start(run, counting)
        run.folder.mark_done("start-retriever", {})
    run_stages(
        settings, until="gate" if settings.cotrain.agent == "grpo" else "warmstart", resume=True, overwrite=False
    )
    limit_threads(settings.threads)
    reread = partial(_reread, type(settings))
    plain = settings.model_dump(mode="json")
    with run.folder.claim(plain, resume=True, may_differ=FREE, reread=reread):
        for name, work in stages_of(run, counting):
            if not run.folder.stage_done(name):
                started = time.monotonic()
                with Opened() as run.opened:  # no stage holds in memory what another has opened
                    info = work()
                run.folder.mark_done(name, {**info, "seconds": round(time.monotonic() - started, 1)})
                summarise(run)
        return summarise(run)


def stages_of(run: Cotraining, counting: Counting) -> Iterator[tuple[str, Work]]:
    """The stages in order, each with what it does."""
    yield stage_name(0, "evaluate"), partial(evaluate_round, run, 0)
    for number in range(1, run.chosen.rounds + 1):
        if run.chosen.retriever is not None:
            yield stage_name(number, "rollouts"), partial(roll_out, run, number)
            yield stage_name(number, "rows"), partial(make_rows, run, number)
            yield stage_name(number, "retriever"), partial(train_retriever, run, number, counting)
            if run.info(number, "retriever")["trained"]:
                yield stage_name(number, "index"), partial(index_passages, run, number)
                yield stage_name(number, "guard"), partial(guard, run, number)
        if run.chosen.agent == "grpo":
            yield stage_name(number, "agent"), partial(train_agent, run, number)
        yield stage_name(number, "evaluate"), partial(evaluate_round, run, number)


def _reread(kind: type[CotrainRun], saved: dict[str, Any]) -> dict[str, Any]:
    return validate(kind, saved, "config.yaml of the run").model_dump(mode="json")
