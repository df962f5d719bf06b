"""Training in stages: each is a run of its own, in ``stage-N`` of the run folder, started from a stage before.

Adapters are merged between stages, so that each starts from whole weights. A stage that is done is not repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retrieval.encoders.encoder import Encoder
from retrieval.encoders.loading import open_trainable_encoder
from retrieval.training.config import DevSettings, SourceSettings, StageSettings
from retrieval.training.dev import DevSet, load_dev, means
from retrieval.training.merging import check_tokenizers, merge_weights
from retrieval.training.pipeline import TrainingRun, index_trained, make_scratch, run_training
from retrieval.training.rerankers.dev import load_candidates
from retrieval.training.row import passages_of
from retrieval.training.rows import load_rows
from retrieval.training.stages_config import MergeStageSettings, RerankerStageSettings, as_runs
from sleuth.artifacts import add_to_manifest, atomic_folder
from sleuth.errors import ConfigError
from sleuth.layout import RetrieverRunLayout
from sleuth.runs import RunFolder

_MERGE, _EVALUATE = "merge", "evaluate"


def run_all(run: TrainingRun) -> dict[str, Any]:
    """Run every stage, or the whole run where it has none; returns the record of each part of each."""
    if not run.settings.stages:
        return run_training(run)
    records: dict[str, dict[str, Any]] = {}
    parts = stage_runs(run)
    _check_candidates(parts)
    _have_backbone(run, parts)
    for stage, part in zip(run.settings.stages, parts, strict=True):
        found = _merged(run, stage, part) if isinstance(stage, MergeStageSettings) else run_training(part)
        records[stage.name] = found | _evaluated(run, stage, part)
    _publish(run, parts, records)
    if not run.folder.stage_done("index"):
        run.folder.mark_done("index", index_trained(run))
    told = {f"{stage}/{name}": record for stage, found in records.items() for name, record in found.items()}
    return told | ({"index": found} if (found := run.folder.stage_info("index")) else {})


def stage_runs(run: TrainingRun) -> list[TrainingRun]:
    """The runs that a run consists of; itself where it has no stages."""
    parts = as_runs(run.settings)
    return [replace(run, settings=part, folder=RunFolder(part.out)) for part in parts] or [run]


def _check_candidates(parts: Sequence[TrainingRun]) -> None:
    """Raise DataError for dev queries without candidates to rank, before any stage is trained."""
    for part in parts:
        dev, reranker = part.settings.evaluation, part.settings.reranker
        if dev is not None and reranker is not None and reranker.first_stage is None:
            load_candidates(dev, reranker, part.progress)


def _have_backbone(run: TrainingRun, parts: Sequence[TrainingRun]) -> None:
    """One random backbone for all stages: were each to learn a vocabulary, their encoders could not be merged."""
    start = run.settings.encoder
    if start is None or start.scratch is None or run.layout.backbone.exists():
        return
    data = dict.fromkeys(source for part in parts for source in part.settings.data)
    there = [source for source in data if not _is_made_later(run, source)]
    make_scratch(start, run.layout.backbone, load_rows(there), run.settings.seed)


def _is_made_later(run: TrainingRun, source: SourceSettings) -> bool:
    path = Path(source.path)
    return run.layout.out.resolve() in path.resolve().parents and not path.exists()


def _merged(run: TrainingRun, stage: MergeStageSettings, part: TrainingRun) -> dict[str, Any]:
    """Merge the encoders of earlier stages, and measure them and what came of them."""
    if not part.folder.stage_done(_MERGE):
        names = [one.name for one in run.settings.stages]
        folders = {name: run.layout.stage(names.index(name) + 1).encoder for name in stage.parts}
        part.folder.mark_done(_MERGE, _merge(part, stage, folders))
    return {_MERGE: part.folder.stage_info(_MERGE)}


def _merge(part: TrainingRun, stage: MergeStageSettings, folders: Mapping[str, Path]) -> dict[str, Any]:
    dev = part.settings.evaluation
    devset = load_dev(dev, part.settings.seed) if dev else None
    encoders = [open_trainable_encoder(folder) for folder in folders.values()]
    check_tokenizers(dict(zip(folders, encoders, strict=True)))
    figures = [_figure(encoder, dev, devset) for encoder in encoders]
    shares = _shares(stage, figures)
    weights = merge_weights([encoder.model.state_dict() for encoder in encoders], shares, stage.method)
    encoders[0].model.load_state_dict(weights)
    encoders[0].save(part.layout.encoder, overwrite=True)
    record: dict[str, Any] = {"weights": dict(zip(folders, shares, strict=True))}
    add_to_manifest(part.layout.encoder, {"merged": {**record, "method": stage.method}})
    if dev is not None:
        known = [figure for figure in figures if figure is not None]
        record |= {"parts": dict(zip(folders, figures, strict=True)), "mean_of_parts": sum(known) / len(known)}
        record |= {"best": _figure(open_trainable_encoder(part.layout.encoder), dev, devset)}
    return record


def _evaluated(run: TrainingRun, stage: StageSettings, part: TrainingRun) -> dict[str, Any]:
    """An encoder that nothing has watched, measured by the run's evaluation."""
    dev = run.settings.evaluation
    if dev is None or part.settings.evaluation is not None or not stage.makes_encoder:
        return {}
    if not part.folder.stage_done(_EVALUATE):
        beside = passages_of(load_rows(run.settings.data)) if run.settings.data else []
        devset = load_dev(dev, run.settings.seed, beside)
        with run.counting(f"dev passages, stage {stage.name}") as on_progress:
            encoder = open_trainable_encoder(part.layout.encoder)
            values = devset.per_query(encoder, dev.k, on_progress=on_progress)
        part.folder.mark_done(_EVALUATE, {"queries": len(devset.rows), "k": dev.k, **means(values)})
    return {_EVALUATE: part.folder.stage_info(_EVALUATE)}


def _figure(encoder: Encoder, dev: DevSettings | None, devset: DevSet | None) -> float | None:
    if dev is None or devset is None:
        return None
    return means(devset.per_query(encoder, dev.k))[dev.metric]


def _shares(stage: MergeStageSettings, figures: Sequence[float | None]) -> list[float]:
    """What each encoder counts for; they sum to 1."""
    if stage.weights == "dev":
        known = [figure for figure in figures if figure is not None]
        if not known or not sum(known):
            raise ConfigError(
                f"stage {stage.name}: weights: dev needs an evaluation on which some encoder finds something",
                "give the stage an evaluation, or weights of its own",
            )
        given = known
    else:
        given = list(stage.weights or [1.0] * len(stage.parts))
    return [weight / sum(given) for weight in given]


def _publish(run: TrainingRun, parts: Sequence[TrainingRun], records: Mapping[str, Any]) -> None:
    """The encoder of the last stage that made one, and the last reranker, where those of a run are.

    Their manifests tell of every stage: rows and weight of each source, the weights of a merge, figures.
    """
    staged = list(zip(run.settings.stages, parts, strict=True))
    encoders = [part.layout.encoder for stage, part in staged if stage.makes_encoder]
    rerankers = [part.layout.reranker for stage, part in staged if isinstance(stage, RerankerStageSettings)]
    layout: RetrieverRunLayout = run.layout
    for name, made, place in (("encoder", encoders, layout.encoder), ("reranker", rerankers, layout.reranker)):
        if made and not run.folder.stage_done(name):
            with atomic_folder(place, overwrite=True) as folder:
                shutil.copytree(made[-1], folder, dirs_exist_ok=True)
                add_to_manifest(folder, {"stages": records})
            run.folder.mark_done(name, {})
