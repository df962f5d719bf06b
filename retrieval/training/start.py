"""An encoder made ready, and its objective: what each kind in `TrainingSettings.KINDS` begins with."""

from __future__ import annotations

import logging
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
from retrieval.training.instructions import check_instructions
from retrieval.training.objective import AgainstTable, EncoderObjective, InBatch
from retrieval.training.reading import check_letters
from retrieval.training.row import TrainingRow, passages_of
from retrieval.training.sampling import sampler_of
from retrieval.training.terms import terms_of
from retrieval.training.trainer import add_adapter, freeze_passages
from sleuth.errors import ConfigError, DataError
from sleuth.plugins import load_object
from sleuth.types import Passage

log = logging.getLogger("sleuth.train_retriever")

TABLE_BYTES = 8_000_000_000
"""Most that frozen passages of a sparse encoder may take: their table is dense."""

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


def start(settings: TrainingSettings, material: Material) -> tuple[Encoder, EncoderObjective]:
    """The encoder that is trained, and what each of its steps minimises."""
    learnt = passages_of(material.rows)
    read = [*learnt, *material.watched]
    _check_rows(settings, material)
    check_passages(read, material.encoder.modalities, str(material.encoder.source or "the encoder"))
    check_letters(settings, material.encoder, learnt)
    with seeded(material.seed):  # weights that a kind adds are drawn at random
        made: tuple[Encoder, EncoderObjective] = load_object(settings.STARTER)(settings, material)
    return made


def _check_rows(settings: TrainingSettings, material: Material) -> None:
    """Refuse, before anything is encoded, rows that lack what is needed or have what the encoder cannot use."""
    check_instructions(material.rows, material.encoder)
    _check_forms(material)
    if settings.batches == "one_source" and len({row.source for row in material.rows}) == 1:
        log.warning("training.batches: one_source changes nothing, since all rows are of one source")
    taught = sum(any(content_key(p) in row.scores for p in row.negatives) for row in material.rows)
    if settings.distillation is not None and not taught:
        raise DataError(
            "training.distillation needs a teacher's scores, and no row has one beside its negatives",
            "set mining.teacher, or give Tevatron rows whose passages have a 'score'",
        )
    if settings.distillation is not None:
        log.info("%d of %d rows have a teacher's scores", taught, len(material.rows))


def _check_forms(material: Material) -> None:
    own = material.encoder.settings.query_form
    other = next((row.query_form for row in material.rows if row.query_form not in ("", own)), None)
    if other is not None:
        raise ConfigError(
            f"training rows have queries in the form {other}, and the encoder reads the form {own}",
            f"set encoder.settings.query_form to {other}, or write the rows anew",
        )


def in_batch(settings: InBatchSettings, material: Material) -> tuple[Encoder, EncoderObjective]:
    if settings.lora is not None:
        if material.encoder.settings.towers == "separate":
            raise ConfigError(
                "an adapter is not trained with separate towers: sentence-transformers cannot load it again",
                "set towers: shared and queries: encoded, or leave training.lora out",
            )
        add_adapter(material.encoder, settings.lora, material.seed)
    terms = terms_of(timed(settings, material), material.encoder)
    return material.encoder, InBatch(material.rows, settings, material.seed, terms)


def frozen_passages(settings: FrozenSettings, material: Material) -> tuple[Encoder, EncoderObjective]:
    encoder = separate_towers(material.encoder)
    freeze_passages(encoder)
    needed = [*passages_of(material.rows), *material.watched]
    _check_trainable(encoder, len({content_key(p) for p in needed}))
    known = Table(*stored_vectors(settings.index, encoder)) if settings.index else None
    with material.counting("encoding frozen passages") as on_progress:
        table = freeze(encoder, needed, known, on_progress)
    terms = terms_of(timed(settings, material), encoder)
    return encoder, AgainstTable(material.rows, table, settings, material.seed, terms)


def _check_trainable(encoder: Encoder, passages: int) -> None:
    """Refuse queries that cannot learn, and a table of sparse weights that does not fit into memory."""
    if not any(weight.requires_grad for weight in encoder.tower("query").parameters()):
        raise ConfigError("the queries of this encoder have no weights to train", "set training.kind to in_batch")
    size = passages * encoder.dimension * 4
    if encoder.family.kind == "sparse" and size > TABLE_BYTES:
        raise ConfigError(
            f"a table of {passages:,} passages by {encoder.dimension:,} words takes {size / 1e9:.0f} GB",
            f"at most {TABLE_BYTES / 1e9:.0f} GB are taken: use fewer rows, or training.kind in_batch",
        )


def timed(settings: TrainingSettings, material: Material) -> TrainingSettings:
    """``settings`` with the number of steps that they come to."""
    sampler = sampler_of(material.rows, settings, material.seed)
    steps = settings.steps or sampler.steps(settings.epochs)
    sampler.warn_of_undrawn(steps)
    return settings.model_copy(update={"steps": steps})
