"""The stages of a run with teachers: each teacher labels all queries, and a round trains on the labels of those so far.

Progressive label augmentation (Lin et al. 2023, section 3.2): a round begins with the encoder of the round before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from retrieval.config import Progress
from retrieval.open import open_retriever
from retrieval.training.augmentation import CROP, agreement, augment, check_passages, check_size, queries_to_label
from retrieval.training.augmentation_config import AugmentationSettings
from retrieval.training.config import RetrieverTraining
from retrieval.training.instructions import say_unread
from retrieval.training.labels import asked, label, labels_file, rankings
from retrieval.training.row import TrainingRow
from sleuth.layout import RetrieverRunLayout

log = logging.getLogger("sleuth.train_retriever")


def teachers_of_round(settings: RetrieverTraining, number: int) -> range:
    """The numbers of the teachers that join in round ``number``; both count from 1."""
    if settings.augmentation is None:
        return range(0)
    stages = [0, *settings.augmentation.stages]
    return range(stages[number - 1] + 1, stages[number] + 1)


def have_labelled(
    settings: RetrieverTraining,
    number: int,
    layout: RetrieverRunLayout,
    progress: Progress,
    counting: Callable[[str], AbstractContextManager[Callable[[int, int], None]]],
) -> dict[str, Any]:
    """Have teacher ``number`` rank passages for every query that it has not ranked before; the stage's record."""
    chosen = _augmentation(settings)
    for later in range(number, len(chosen.teachers) + 1):  # a missing one is found before hours of training
        chosen.teacher(later).check_files(layout.out)
    teacher_settings = chosen.teacher(number)
    name, last = teacher_settings.name, chosen.negative_ranks[1]
    distant = not teacher_settings.at_hand
    teacher = open_retriever(teacher_settings, cached=False, resilient=distant, progress=progress)
    check_size(teacher, name, chosen)
    rows = queries_to_label(settings.data, chosen, settings.seed)
    say_unread(rows, teacher, name)
    path = _folder(chosen, layout) / labels_file(teacher, last)
    with counting(f"labels of {name}") as on_progress:
        searched = label(
            rows,
            teacher,
            path,
            name=name,
            hits=last,
            batch_size=chosen.batch_size,
            check=lambda found: check_passages(found, name, chosen.passages),
            on_progress=on_progress,
        )
    agrees = agreement(rows, rankings(path, map(asked, rows)), chosen)
    crops = sum(row.id.startswith(CROP) for row in rows)
    if chosen.crops and crops < chosen.crops.count:
        log.warning("only %d of %d crops: no more passages are long enough", crops, chosen.crops.count)
    log.info("teacher %d, %s: %d queries, %d searched now; %s", number, name, len(rows), searched, agrees)
    return {"labels": path.name, "queries": len(rows), "crops": crops, "searched": searched, **agrees.figures()}


def labelled_rows(
    settings: RetrieverTraining,
    round_number: int,
    layout: RetrieverRunLayout,
    record_of: Callable[[int], Mapping[str, Any]],
) -> list[TrainingRow]:
    """The rows of a round; ``record_of`` gives what `have_labelled` returned for a teacher."""
    chosen = _augmentation(settings)
    rows = queries_to_label(settings.data, chosen, settings.seed)
    files = [record_of(t)["labels"] for t in range(1, chosen.stages[round_number - 1] + 1)]
    return augment(rows, [rankings(_folder(chosen, layout) / name, map(asked, rows)) for name in files], chosen)


def _augmentation(settings: RetrieverTraining) -> AugmentationSettings:
    assert settings.augmentation is not None
    return settings.augmentation


def _folder(chosen: AugmentationSettings, layout: RetrieverRunLayout) -> Path:
    return chosen.labels or layout.labels
