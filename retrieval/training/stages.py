"""Training in stages: each is a run of its own, in ``stage-N`` of the run folder, started from the stage before.

Adapters are merged between stages, so that each starts from whole weights. A stage that is done is not repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from retrieval.training.config import RetrieverTraining, StageSettings
from retrieval.training.pipeline import TrainingRun, index_trained, run_training
from retrieval.training.start_config import EncoderStart
from sleuth.artifacts import atomic_folder
from sleuth.runs import RunFolder


def run_all(run: TrainingRun) -> dict[str, Any]:
    """Run every stage, or the whole run where it has none; returns the record of each part of each."""
    if not run.settings.stages:
        return run_training(run)
    records: dict[str, Any] = {}
    for stage, part in zip(run.settings.stages, stage_runs(run), strict=True):
        for name, record in run_training(part).items():
            records[f"{stage.name}/{name}"] = record
    if not run.folder.stage_done("encoder"):
        with atomic_folder(run.layout.encoder, overwrite=True) as folder:
            shutil.copytree(stage_runs(run)[-1].layout.encoder, folder, dirs_exist_ok=True)
        run.folder.mark_done("encoder", {})
    if not run.folder.stage_done("index"):
        run.folder.mark_done("index", index_trained(run))
    return records | ({"index": found} if (found := run.folder.stage_info("index")) else {})


def stage_runs(run: TrainingRun) -> list[TrainingRun]:
    """The runs that a run consists of; itself where it has no stages."""
    made: list[TrainingRun] = []
    for number, stage in enumerate(run.settings.stages, start=1):
        folder = RunFolder(run.layout.stage(number).out)
        start = EncoderStart(backbone=str(made[-1].layout.encoder)) if made else run.settings.encoder
        settings = _settings_of(run.settings, stage, start, last=number == len(run.settings.stages))
        made.append(replace(run, settings=settings.model_copy(update={"out": folder.path}), folder=folder))
    return made or [run]


def _settings_of(
    whole: RetrieverTraining, stage: StageSettings, start: EncoderStart | None, last: bool
) -> RetrieverTraining:
    """``stage`` as a run; the run's evaluation watches the last one, where that has none of its own."""
    values: Mapping[str, Any] = {
        "encoder": start,
        "stages": [],
        "data": stage.data or whole.data,
        "mining": stage.mining,
        "rounds": stage.rounds,
        "round_corpus": stage.round_corpus,
        "training": stage.training,
        "evaluation": stage.evaluation or (whole.evaluation if last else None),
        "index": None,
        "merge_adapter": True,
    }
    return whole.model_copy(update=dict(values))
