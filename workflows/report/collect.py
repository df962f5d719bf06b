"""Collects what the report shows of a run folder: settings, metrics, evaluations, and its trajectory files."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrieval.store import IMAGES
from sleuth.artifacts import MANIFEST
from sleuth.cotrain_layout import CotrainLayout
from sleuth.errors import ArtifactError, SleuthError
from sleuth.layout import EvaluationLayout, GridLayout, RunLayout, read_record
from sleuth.runs import RunFolder
from sleuth.settings import flatten
from sleuth.sinks import read_metrics
from sleuth.trajectories import from_line, read_trajectories, trajectory_files
from sleuth.types import Origin, ScoredTrajectory
from workflows.paired import system_name
from workflows.report.rounds import round_evaluations, rounds_ended, rounds_table

LAST_STAGE = "grpo"
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True, slots=True)
class Source:
    """Trajectories of one kind: the rollouts of training, or one evaluation.

    ``step``: of the evaluated checkpoint, None if the name says it. ``order`` sorts evaluations from the first
    checkpoint to the last. ``system``: what answers; the evaluations of one system are compared as one.
    """

    name: str
    folder: Path
    training: bool
    order: tuple[int, int]
    step: int | None = None
    system: str = ""


@dataclass(frozen=True, slots=True)
class RunData:
    """One run, read: ``config`` by dotted key, ``series`` as name -> [(step, value)].

    ``gate``: what the stage before GRPO found, in one line; empty where there was none. ``suite``: the figures of one.
    ``rounds``: the table of co-training. ``indexes``: those with pictures that it names.
    """

    name: str
    path: Path
    finished: bool
    config: Mapping[str, Any]
    series: Mapping[str, Sequence[tuple[int, float]]]
    evaluations: Mapping[str, Mapping[str, Any]]
    stages: Sequence[str]
    sources: Sequence[Source]
    tokenizer: Path | None
    gate: str = ""
    suite: Mapping[str, Any] | None = None
    rounds: Mapping[str, Any] | None = None
    indexes: Sequence[Path] = ()


def read_run(path: Path, name: str) -> RunData:
    """Everything about a run except its trajectories. Raises ArtifactError if there is no run."""
    config = RunFolder(path).read_config()
    if "cells" in config:
        return read_grid(path, name, config["cells"])
    layout = RunLayout(path)
    stages = layout.done_stages()
    rounds = int((config.get("cotrain") or {}).get("rounds", 0))
    return RunData(
        name=name,
        path=path,
        finished=_finished(path, config, stages),
        config=flatten(config),
        series=_series(read_metrics(layout.metrics)) if layout.metrics.exists() else {},
        evaluations=dict(_evaluations(path, rounds)),
        stages=stages,
        sources=list(_sources(path, rounds)),
        tokenizer=_tokenizer(path, config),
        gate=str((read_record(layout.gate.metrics) or {}).get("line", "")),
        rounds=rounds_table(path),
        indexes=[*picture_indexes(config)],
    )


def _finished(path: Path, config: Mapping[str, Any], stages: Sequence[str]) -> bool:
    if "cotrain" in config:
        return rounds_ended(path, config["cotrain"]["rounds"])
    wanted = LAST_STAGE if config.get("grpo") else "warmstart" if config.get("warmstart") else None
    return wanted in stages if wanted else EvaluationLayout(path).metrics.exists()


def read_grid(path: Path, name: str, cells: Sequence[str]) -> RunData:
    """Several evaluations beside each other, finished or not, as one run: every cell is one of its evaluations."""
    layout = GridLayout(path)
    content = read_record(layout.metrics) or {}
    systems = {row["folder"]: system_name(row) for row in content.get("cells", ())}
    sources, evaluations = [], {}
    for number, cell in enumerate(cells):
        evaluation = layout.cell(cell)
        figures = read_record(evaluation.metrics)
        if figures is not None:
            evaluations[cell] = figures
        for part in (evaluation, *evaluation.existing_samples()):
            if trajectory_files(part.folder):
                label = cell if part is evaluation else f"{cell}, {part.folder.name}"
                sources.append(Source(label, part.folder, False, (3, number), system=systems.get(cell, cell)))
    folders = [layout.cell(cell).folder for cell in cells]
    configs = [RunFolder(folder).read_config() for folder in folders if RunLayout(folder).config.exists()]
    flat = [flatten(config) for config in configs]
    alike = {key: flat[0][key] for key in flat[0] if all(one.get(key) == flat[0][key] for one in flat)} if flat else {}
    tokenizer = _tokenizer(path, configs[0]) if configs else None
    finished = layout.metrics.exists()
    suite = content.get("suite")
    indexes = [*picture_indexes(configs)]
    return RunData(name, path, finished, alike, {}, evaluations, [], sources, tokenizer, suite=suite, indexes=indexes)


def read_source(source: Source, damaged: list[str]) -> Iterator[ScoredTrajectory]:
    """Its trajectories. Unreadable rows are reported in ``damaged``, except for an unfinished last line of a file that
    a run is still writing.
    """
    for file in trajectory_files(source.folder):
        rows = _readable(file, f"{source.name}, {file.name}", damaged)
        yield from _with_origin(rows, int(found[1])) if (found := _STEP.match(file.name)) else rows


def _readable(file: Path, name: str, damaged: list[str]) -> Iterator[ScoredTrajectory]:
    if file.suffix == ".parquet":
        try:
            yield from read_trajectories(file)
        except SleuthError as error:
            damaged.append(f"the rest of {name}, which cannot be read ({error.message})")
        return
    bad: list[int] = []
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    if line.strip():
                        yield from_line(line, f"line {number}")
                except SleuthError:
                    bad += [number] if line.endswith(b"\n") else []
    except FileNotFoundError:  # the run has just closed it
        return
    if bad:
        damaged.append(f"{len(bad)} damaged rows of {name}, the first in line {bad[0]}")


def _with_origin(rows: Iterator[ScoredTrajectory], step: int) -> Iterator[ScoredTrajectory]:
    """Add step and group to rows without them, from the file's name and the changes of question."""
    group, before = -1, None
    for row in rows:
        question = row.trajectory.question
        group, before = group + (question != before), question
        yield row if row.origin else replace(row, origin=Origin(step, group))


def run_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each run: its folder's, with enough parent folders to be unique."""
    resolved = [path.resolve() for path in paths]
    for depth in range(1, 10):
        names = ["/".join(path.parts[-depth:]) for path in resolved]
        if len(set(names)) == len(names):
            return names
    raise ArtifactError("the same run was given twice", "give each run once")


def state_of(paths: Sequence[Path]) -> tuple[tuple[str, int, int], ...]:
    """A value that changes whenever anything shown in the report has changed on disk."""
    found = []
    for file in (file for path in paths for file in _watched(path)):
        try:
            stat = file.stat()
        except FileNotFoundError:
            continue
        if not file.name.startswith("."):
            found.append((str(file), stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def _watched(path: Path) -> Iterator[Path]:
    """The files, some of which may not exist, that the report shows of the run at ``path``."""
    layout, alone = RunLayout(path), EvaluationLayout(path)
    yield from (layout.config, layout.metrics, alone.metrics, CotrainLayout(path).rounds)
    cells = [EvaluationLayout(folder) for folder in sorted(path.glob("*-*")) if (folder / MANIFEST).is_file()]
    parts = [part for cell in cells for part in (cell, *cell.existing_samples())]  # of a grid
    yield from (cell.metrics for cell in cells)
    for evaluation in (alone, *alone.existing_samples(), *parts):
        yield from trajectory_files(evaluation.folder)
    of_stages = (evaluation.folder for evaluation in (*layout.evaluations(), *layout.grpo.dev_evaluations()))
    for folder in (layout.stages, layout.grpo.trajectories, *of_stages):
        yield from sorted(folder.glob("*"))


def _sources(path: Path, rounds: int) -> Iterator[Source]:
    """Rollouts first, then evaluations from the earliest checkpoint to the last."""
    layout = RunLayout(path)
    if trajectory_files(layout.grpo.trajectories):
        yield Source("rollouts", layout.grpo.trajectories, True, (1, 0))
    found = [
        Source(f"test, {folder.name}", folder, False, _checkpoint(folder.name), system=f"test, {folder.name}")
        for folder in (evaluation.folder for evaluation in layout.evaluations())
    ]
    for folder in (evaluation.folder for evaluation in layout.grpo.dev_evaluations()):
        step = _number(folder.name)
        found.append(Source(f"dev, step {step}", folder, False, (2, step), system=f"dev, step {step}"))
    yield from (source for source in sorted(found, key=lambda s: s.order) if trajectory_files(source.folder))
    for number, (name, evaluation) in enumerate(round_evaluations(path, rounds) if rounds else ()):
        if trajectory_files(evaluation.folder):
            yield Source(name, evaluation.folder, False, (5, number), system=name)
    samples = [sample.folder for sample in EvaluationLayout(path).existing_samples()]
    # a standalone evaluation, of one or several samples per question
    for folder, name in [(path, "evaluation"), *((folder, folder.name) for folder in samples)]:
        if trajectory_files(folder):
            yield Source(name, folder, False, (3, 0), system="evaluation")


def _checkpoint(name: str) -> tuple[int, int]:
    """Sort key, by time, of an evaluation folder named ``<stage>-<mode>``."""
    return {"policy": (0, 0), "warmstart": (1, 0), "grpo": (4, 0)}.get(name.partition("-")[0], (3, 0))


def _number(name: str) -> int:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else 0


def _evaluations(path: Path, rounds: int) -> Iterator[tuple[str, dict[str, Any]]]:
    stages = sorted(RunLayout(path).evaluations(), key=lambda evaluation: _checkpoint(evaluation.folder.name))
    named = [(evaluation.folder.name, evaluation) for evaluation in stages]
    named += [*(round_evaluations(path, rounds) if rounds else ()), ("evaluation", EvaluationLayout(path))]
    for name, evaluation in named:
        figures = read_record(evaluation.metrics)
        if figures is not None:
            yield name, figures


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """Metrics by name as points; the last of several values at a step counts."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault(name, {})[int(row["step"])] = float(value)
    return {name: sorted(points.items()) for name, points in sorted(found.items())}


def _tokenizer(path: Path, config: Mapping[str, Any]) -> Path | None:
    """A tokenizer.json for the text of this run's tokens; None if there is none locally."""
    model = (config.get("policy") or {}).get("model")
    folders = list(RunLayout(path).policies())
    if model and Path(model).is_dir():
        folders += [Path(model), *Path(model).parents[:1]]
    return next((folder / "tokenizer.json" for folder in folders if (folder / "tokenizer.json").is_file()), None)


def picture_indexes(config: Any) -> Iterator[Path]:
    """The indexes with pictures that a config names, wherever it does so."""
    if isinstance(config, Mapping):
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from picture_indexes(value)
    elif isinstance(config, str) and config:
        with contextlib.suppress(OSError, ValueError):  # a text that is no path
            if (Path(config) / IMAGES).is_file():
                yield Path(config)
