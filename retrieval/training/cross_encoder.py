"""Trains a cross-encoder, which scores query and passage together, on the same rows as an encoder.

sentence-transformers' trainer and losses do the work; this module makes the pairs and handles folders and resume.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, LambdaLoss
from transformers import PrinterCallback

from hub.callbacks import CompletionMarker, LogToSink
from hub.models import loading
from retrieval.passages import passage_text
from retrieval.rerankers.loading import CROSS_ENCODER
from retrieval.training.config import RerankerSettings
from retrieval.training.rows import TrainingRow
from retrieval.training.sampling import golds_by_query, same_as
from sleuth.artifacts import atomic_folder, write_manifest
from sleuth.checkpoints import drop_incomplete, newest_complete
from sleuth.errors import DataError
from sleuth.protocols import MetricSink
from sleuth.seeding import derive_seed
from sleuth.types import Passage

KIND = "reranker"


def train_reranker(
    rows: Sequence[TrainingRow],
    settings: RerankerSettings,
    out: Path,
    work: Path,
    *,
    seed: int,
    sink: MetricSink,
    resume: bool = False,
) -> Path:
    """Train a cross-encoder on the rows' positives and negatives; it goes to ``out``, checkpoints to ``work``."""
    golds = golds_by_query(rows)
    made = (_group(row, golds[row.query], settings.hard_negatives, seed) for row in rows)
    groups = [group for group in made if group is not None]
    if not groups:
        raise DataError("no row has a negative for the reranker to learn from", "mine negatives first")
    torch.manual_seed(seed)
    model = _open(settings)
    dataset, loss = _pairs(model, groups) if settings.loss == "bce" else _lists(model, groups)
    drop_incomplete(work)
    found = newest_complete(work) if resume else None
    trainer = CrossEncoderTrainer(
        model=model,
        args=_arguments(settings, work, seed),
        train_dataset=dataset,
        loss=loss,
        callbacks=[LogToSink(sink), CompletionMarker()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(found) if found else None)
    with atomic_folder(out, overwrite=True) as folder:
        model.save_pretrained(str(folder), create_model_card=False)
        write_manifest(folder, KIND, {"settings": settings.model_dump(mode="json"), "queries": len(groups)})
    return out


Group = tuple[str, list[Passage], list[Passage]]
"""A query, its positives and its negatives."""


def _group(row: TrainingRow, golds: Sequence[Passage], hard_negatives: int, seed: int) -> Group | None:
    gold = same_as(golds)
    negatives = [p for p in row.negatives if not gold(p)]
    if not negatives:
        return None
    rng = random.Random(derive_seed(seed, "pairs", row.id))
    return row.query, list(row.positives), rng.sample(negatives, min(hard_negatives, len(negatives)))


def _pairs(model: CrossEncoder, groups: Sequence[Group]) -> tuple[Dataset, Any]:
    """Independent pairs; positives together weigh as much as negatives."""
    pairs = [
        {"query": query, "passage": passage_text(p), "label": label}
        for query, golds, negatives in groups
        for label, passages in ((1.0, golds), (0.0, negatives))
        for p in passages
    ]
    right = sum(len(golds) for _, golds, _ in groups)
    weight = torch.tensor((len(pairs) - right) / right)
    return Dataset.from_list(pairs), BinaryCrossEntropyLoss(model, pos_weight=weight)


def _lists(model: CrossEncoder, groups: Sequence[Group]) -> tuple[Dataset, Any]:
    """One list of passages per query, ranked against each other."""
    lists = [
        {
            "query": query,
            "passages": [passage_text(p) for p in (*golds, *negatives)],
            "labels": [1.0] * len(golds) + [0.0] * len(negatives),
        }
        for query, golds, negatives in groups
    ]
    return Dataset.from_list(lists), LambdaLoss(model, mini_batch_size=32)


def _open(settings: RerankerSettings) -> CrossEncoder:
    with loading(settings.backbone, CROSS_ENCODER):
        return CrossEncoder(settings.backbone, num_labels=1, max_length=settings.max_tokens)


def _arguments(settings: RerankerSettings, work: Path, seed: int) -> CrossEncoderTrainingArguments:
    return CrossEncoderTrainingArguments(
        output_dir=str(work),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        lr_scheduler_type="linear",
        seed=seed,
        data_seed=seed,
        logging_steps=settings.log_steps,
        save_strategy="steps",
        save_steps=settings.save_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
