"""Trains a reranker on the same rows as an encoder, by the same loop, watched on a dev set if there is one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.config import Progress
from retrieval.rerankers.loading import is_asked
from retrieval.rerankers.scorer import Pair, score_pairs
from retrieval.training.config import DevSettings
from retrieval.training.dev import means
from retrieval.training.rerankers.config import RerankerSettings
from retrieval.training.rerankers.dev import Candidates, load_candidates
from retrieval.training.rerankers.model import Reranker, check_instructions, new_reranker
from retrieval.training.rerankers.objective import RankLists
from retrieval.training.row import TrainingRow
from retrieval.training.start import Counting
from retrieval.training.trainer import Watch, train
from sleuth.checkpoints import newest_complete
from sleuth.errors import ArtifactError
from sleuth.protocols import MetricSink
from sleuth.statistics import paired_difference
from sleuth.trajectories import open_for_append, read_jsonl

_BEFORE = -1
"""The step under which the first stage's own order is recorded."""
_WEIGHTS = "weights.pt"


@dataclass(frozen=True, slots=True)
class Watched:
    """The dev set, the file that takes every query's figures, and how progress is shown."""

    settings: DevSettings
    record: Path
    progress: Progress
    counting: Counting


def train_reranker(
    rows: Sequence[TrainingRow],
    settings: RerankerSettings,
    out: Path,
    work: Path,
    *,
    seed: int,
    sink: MetricSink,
    watched: Watched | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Train a reranker on the rows' golds and negatives; the best goes to ``out``, checkpoints to ``work``.

    Returns the figures of the run.
    """
    objective = RankLists(rows, settings, seed)
    candidates = load_candidates(watched.settings, settings, watched.progress) if watched else None
    reranker = new_reranker(settings, seed=seed)
    check_instructions([*rows, *(candidates.rows if candidates else ())], reranker, settings.backbone)
    if resume:
        _check(work)
    outcome = train(
        reranker,
        objective,
        settings,
        work,
        seed=seed,
        sink=sink,
        watch=_watch(candidates, watched, settings.eval_batch) if watched and candidates else None,
        resume=resume,
    )
    figures = {
        "queries": len(objective.sampler.rows),
        "steps": outcome.last_step,
        "best_step": outcome.best_step,
        "best": outcome.best,
        "seconds": round(outcome.seconds, 1),
        **(_gains(watched, outcome.best_step) if watched else {}),
    }
    reranker.save(out, {"settings": settings.model_dump(mode="json"), "seed": seed, "step": outcome.best_step})
    return figures


def _watch(candidates: Candidates, watched: Watched, batch_size: int) -> Watch[Reranker]:
    dev = watched.settings
    if candidates.ordered and not watched.record.exists():
        _write(watched.record, _BEFORE, candidates.as_given(dev.k))

    def evaluate(current: Reranker, step: int) -> dict[str, float]:
        with watched.counting(f"dev pairs, step {step}") as on_progress:
            values = candidates.per_query(_Current(current, batch_size), dev.k, on_progress)
        _write(watched.record, step, values)
        return means(values)

    return Watch(evaluate, dev.metric, dev.every, dev.patience)


@dataclass(frozen=True, slots=True)
class _Current:
    """A reranker as a scorer, while it is trained."""

    reranker: Reranker
    batch_size: int
    fingerprint: str = "in training"

    @property
    def takes_instructions(self) -> bool:
        return is_asked(self.reranker.model)

    def score(self, pairs: Sequence[Pair], instructions: Sequence[str] = ()) -> list[float]:
        return score_pairs(self.reranker.model, pairs, self.batch_size, instructions)


def _write(record: Path, step: int, values: Mapping[str, Sequence[float]]) -> None:
    with open_for_append(record) as file:
        file.write(json.dumps({"step": step, **values}) + "\n")


def _gains(watched: Watched, best_step: int) -> dict[str, Any]:
    """What the chosen step gains over the untrained start and over the first stage, paired over dev queries."""
    metric = watched.settings.metric
    by_step = {row["step"]: row[metric] for _, row in read_jsonl(watched.record)}
    found: dict[str, Any] = {}
    for name, prefix, step in (("start", "gain", 0), ("first_stage", "gain_over_first_stage", _BEFORE)):
        if step in by_step:
            gain = paired_difference(by_step[step], by_step[best_step])
            found |= {name: means({metric: by_step[step]})[metric], prefix: gain.difference}
            found |= {f"{prefix}_low": gain.low, f"{prefix}_high": gain.high, f"{prefix}_method": gain.method}
    return found


def _check(work: Path) -> None:
    """Raise ArtifactError if the checkpoints are of another loop."""
    newest = newest_complete(work)
    if newest is not None and not (newest / _WEIGHTS).is_file():
        raise ArtifactError(f"{newest} was made by an earlier version of the training loop", "start with --overwrite")
