"""An encoder made ready, and its objective: what each kind in `TrainingSettings.KINDS` begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from hub.randomness import seeded
from retrieval.dense.retriever import stored_vectors
from retrieval.encoders.encoder import Encoder, separate_towers
from retrieval.encoders.modalities import check_passages
from retrieval.passages import content_key
from retrieval.training.config import FrozenSettings, InBatchSettings, TrainingSettings
from retrieval.training.frozen import Table, freeze
from retrieval.training.instructions import prompt_for
from retrieval.training.objective import AgainstTable, InBatch, Objective
from retrieval.training.rows import TrainingRow, passages_of
from retrieval.training.sampling import BatchSampler
from retrieval.training.terms import terms_of
from retrieval.training.trainer import add_adapter, freeze_passages
from sleuth.errors import DataError
from sleuth.plugins import load_object
from sleuth.types import Passage

Counting = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Shows a count under a title; yields a callback for (done, total)."""


@dataclass(frozen=True, slots=True)
class Material:
    """What training begins with. ``watched``: passages of the dev set, which are searched as training goes on."""

    encoder: Encoder
    rows: Sequence[TrainingRow]
    watched: Sequence[Passage]
    seed: int
    counting: Counting


def start(settings: TrainingSettings, material: Material) -> tuple[Encoder, Objective]:
    """The encoder that is trained, and what each of its steps minimises."""
    read = [*passages_of(material.rows), *material.watched]
    _check_rows(settings, material)
    check_passages(read, material.encoder.modalities, str(material.encoder.source or "the encoder"))
    with seeded(material.seed):  # weights that a kind adds are drawn at random
        made: tuple[Encoder, Objective] = load_object(settings.STARTER)(settings, material)
    return made


def _check_rows(settings: TrainingSettings, material: Material) -> None:
    """Refuse, before anything is encoded, rows that lack what is needed or have what the encoder cannot use."""
    for instruction in {row.instruction for row in material.rows}:
        prompt_for(material.encoder.settings.query_prompt, instruction)
    taught = sum(any(content_key(p) in row.scores for p in row.negatives) for row in material.rows)
    if settings.distillation is not None and not taught:
        raise DataError(
            "training.distillation needs a teacher's scores, and no row has one beside its negatives",
            "set mining.teacher, or give Tevatron rows whose passages have a 'score'",
        )


def in_batch(settings: InBatchSettings, material: Material) -> tuple[Encoder, Objective]:
    if settings.lora is not None:
        add_adapter(material.encoder, settings.lora, material.seed)
    terms = terms_of(timed(settings, material), material.encoder)
    return material.encoder, InBatch(material.rows, settings, material.seed, terms)


def frozen_passages(settings: FrozenSettings, material: Material) -> tuple[Encoder, Objective]:
    encoder = separate_towers(material.encoder)
    freeze_passages(encoder)
    needed = [*passages_of(material.rows), *material.watched]
    known = Table(*stored_vectors(settings.index, encoder)) if settings.index else None
    with material.counting("encoding frozen passages") as on_progress:
        table = freeze(encoder, needed, known, on_progress)
    terms = terms_of(timed(settings, material), encoder)
    return encoder, AgainstTable(material.rows, table, settings, material.seed, terms)


def timed(settings: TrainingSettings, material: Material) -> TrainingSettings:
    """``settings`` with the number of steps that they come to."""
    batches = BatchSampler(material.rows, settings.batch_size, settings.hard_negatives, material.seed)
    return settings.model_copy(update={"steps": settings.steps or batches.steps(settings.epochs)})
