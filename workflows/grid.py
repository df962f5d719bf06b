"""Several evaluations as one: policies x retrievers x modes x data sets, compared question by question.

A grid of policies and retrievers separates the effects of the two, as in BrowseComp-Plus (Chen et al. 2025); the bars
for direct, RAG and search agent follow Search-R1 (Jin et al. 2025).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleuth.errors import ConfigError, did_you_mean
from sleuth.layout import EvaluationLayout, GridLayout, write_record
from sleuth.runs import RunFolder
from workflows.model_settings import compare_prompts, evaluation_settings
from workflows.paired import Values, compare, values_of
from workflows.play import Evaluation, Opened, Progress, check_playable, play

if TYPE_CHECKING:
    from workflows.config import RunSettings
    from workflows.suites.choose import ChosenSet

MODES = ("direct", "cot", "rag", "search")
NO_SEARCH = ("direct", "cot")
_WITH_DEPTH = re.compile(r"(rag|search)@([1-9]\d*)")


@dataclass(frozen=True, slots=True)
class Options:
    """Options that apply to all cells, as given on the command line."""

    overrides: list[str]
    preset: str | None = None
    limit: int | None = None
    batch_size: int | None = None
    samples: int | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Cell:
    """One evaluation of the grid; ``retriever`` is a dash if nothing is searched.

    ``mode`` is that of the environment, or as it was asked for, ``rag@3``.
    """

    data: str
    policy: str
    mode: str
    retriever: str
    settings: RunSettings

    @property
    def folder(self) -> str:
        words = (self.data, *self.system[:2], "" if self.retriever == "-" else self.retriever)
        return "-".join(re.sub(r"[^\w.]+", "_", word) for word in words if word)

    @property
    def system(self) -> tuple[str, str, str]:
        """What answers: policy, mode and retriever."""
        return self.policy, self.mode, self.retriever


def cells_of(
    models: Sequence[str], data: Sequence[str], retrievers: Sequence[str], modes: Sequence[str], options: Options
) -> list[Cell]:
    """Every combination; a mode that does not search occurs only once, however many retrievers there are.

    ``rag@3`` is a mode with another number of passages, ``grpo:search`` one for the policy of that name alone.

    Raises ConfigError for settings that do not fit and for duplicate names.
    """
    cells: dict[tuple[str, ...], Cell] = {}
    for _, mode in map(_split_mode, modes):
        if mode not in MODES and not _WITH_DEPTH.fullmatch(mode):
            raise ConfigError(f"no mode '{mode}'", f"{did_you_mean(mode, MODES)} With other top-k passages: rag@3")
    policies, sets = parse_named(models, "model"), parse_named(data or [""], "--data")
    searched = parse_named(retrievers or [""], "--retriever")
    for owner, mode in map(_split_mode, modes):
        if owner and owner not in policies:
            raise ConfigError(f"--mode {owner}:{mode}: no model is called '{owner}'", did_you_mean(owner, policies))
    for (policy, model), (name, file), asked, (index_name, index) in product(
        policies.items(), sets.items(), modes or [""], searched.items()
    ):
        owner, mode = _split_mode(asked)
        if owner not in ("", policy):
            continue
        kind, _, depth = mode.partition("@")
        settings = evaluation_settings(
            model,
            options.overrides,
            file or None,
            index or None,
            kind or None,
            options.preset,
            options.limit,
            options.batch_size,
            options.samples,
            options.temperature,
            int(depth) if depth else None,
        )
        kind = settings.environment.kind
        where = "-" if kind in NO_SEARCH else index_name or _index_name(settings)
        key = (name or Path(settings.data.dev or "").stem, policy, mode if depth else kind, where)
        cells.setdefault(key, Cell(*key, settings))
    for policy, model in policies.items():
        own = next((cell.settings for cell in cells.values() if cell.policy == policy), None)
        if own is None:
            raise ConfigError(f"no mode is given for the model '{policy}'", f"add --mode {policy}:search")
        compare_prompts(model, own)
    _check_folders(list(cells.values()))
    return list(cells.values())


def _split_mode(mode: str) -> tuple[str, str]:
    """The policy that it is for, blank if for all, and the mode."""
    owner, _, plain = mode.rpartition(":")
    return owner, plain


def _check_folders(cells: Sequence[Cell]) -> None:
    folders = [cell.folder for cell in cells]
    twice = next((folder for folder in folders if folders.count(folder) > 1), None)
    if twice:
        raise ConfigError(f"two cells would be saved in '{twice}'", "give them different names: NAME=VALUE")


def evaluate_grid(
    cells: Sequence[Cell],
    out: Path,
    resume: bool,
    overwrite: bool,
    on_cell: Callable[[int, Cell], None],
    progress: Progress,
    sets: Sequence[ChosenSet] = (),
) -> dict[str, Any]:
    """Evaluate every cell into ``out``, calling ``on_cell`` before each. Returns the grid's metrics.

    ``sets``: those of a suite, whose questions are written to where the cells read them.
    """
    layout = GridLayout(out)
    identity: dict[str, Any] = {"cells": [cell.folder for cell in cells]}
    if sets:
        identity["suite"] = {chosen.name: chosen.record for chosen in sets}
    for cell in cells:
        check_playable(cell.settings)
    with RunFolder(out).claim(identity, resume=resume, overwrite=overwrite):
        for chosen in sets:
            chosen.write(layout.questions(chosen.name))
        done = []
        with Opened() as opened:
            for number, cell in enumerate(cells, start=1):
                on_cell(number, cell)
                folder = layout.cell(cell.folder).folder
                done.append(play(cell.settings, folder, opened, resume=True, overwrite=False, progress=progress))
        values = [
            values_of(EvaluationLayout(evaluation.folder).samples(cell.settings.evaluation.samples))
            for cell, evaluation in zip(cells, done, strict=True)
        ]
        content: dict[str, Any] = {
            "cells": [_row(cell, evaluation) for cell, evaluation in zip(cells, done, strict=True)],
            "comparisons": comparisons(cells, values),
        }
        if sets:
            from workflows.suites.table import suite_figures

            by_system: dict[tuple[str, str, str], dict[str, Mapping[str, Values]]] = defaultdict(dict)
            for cell, found in zip(cells, values, strict=True):
                by_system[cell.system][cell.data] = found
            content["suite"] = suite_figures(sets, by_system, cells[0].settings.evaluation.bootstrap)
        write_record(layout.metrics, content)
    return content


def comparisons(cells: Sequence[Cell], values: Sequence[Mapping[str, Values]]) -> list[dict[str, Any]]:
    """Paired differences b - a, with interval and p-value, of every two cells of one data set.

    Those of EM stand at the top, of other measures (F1, the reward) under the measure's name.
    """
    by_data: dict[str, list[int]] = defaultdict(list)
    for place, cell in enumerate(cells):
        by_data[cell.data].append(place)
    found = []
    for together in by_data.values():
        for a, b in combinations(together, 2):
            if compared := compare(values[a], values[b]):
                found.append({"a": cells[a].folder, "b": cells[b].folder, **compared})
    return found


def _row(cell: Cell, evaluation: Evaluation) -> dict[str, Any]:
    place = {"data": cell.data, "policy": cell.policy, "mode": cell.mode, "retriever": cell.retriever}
    return {**place, "folder": cell.folder, **evaluation.figures}


def parse_named(given: Sequence[str], what: str) -> dict[str, str]:
    """Values by name, from ``NAME=VALUE`` or a bare value, named by enough of its path to be unique."""
    named: dict[str, str] = {}
    for text in given:
        match = re.fullmatch(r"([\w.-]+)=(.+)", text, re.DOTALL)
        name, value = match.groups() if match else (_short(text, given), text)
        if name in named:
            raise ConfigError(f"{what} '{name}' is given twice", "give each its own name: NAME=VALUE")
        named[name] = value
    return named


def _short(text: str, given: Sequence[str]) -> str:
    """The last part of a path, or more parts if another value ends the same way."""
    if text.lstrip().startswith("{"):
        return re.sub(r"\W+", "_", text).strip("_")[:40]
    parts, others = _parts(text), [_parts(other) for other in given]
    for count in range(1, len(parts)):
        if sum(other[-count:] == parts[-count:] for other in others) == 1:
            return "/".join(parts[-count:])
    return "/".join(parts)


def _parts(text: str) -> tuple[str, ...]:
    parts = Path(text).parts
    return (*parts[:-1], re.sub(r"\.(jsonl?|tsv|csv|ya?ml|gguf)$", "", parts[-1])) if parts else ()


def _index_name(settings: RunSettings) -> str:
    from retrieval.config import IndexedSettings

    retriever = settings.retriever
    if retriever is None:
        return "-"
    return retriever.index.name if isinstance(retriever, IndexedSettings) else retriever.kind
