"""What a step minimises: InfoNCE within a batch, or against a table of frozen passages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from retrieval.encoders.config import Role
from retrieval.encoders.encoder import Encoder, Vectors
from retrieval.passages import passage_text
from retrieval.training.config import FrozenSettings, TrainingSettings
from retrieval.training.gradient_cache import Embed, cached_backward
from retrieval.training.loss import ContrastiveLoss, Targets, info_nce
from retrieval.training.ranks import gather, share
from retrieval.training.rows import TrainingRow
from retrieval.training.sampling import Batch, BatchSampler, content_key, one_key
from sleuth.types import Passage


class Objective(Protocol):
    def steps(self, epochs: float) -> int:
        """Steps that go through the rows ``epochs`` times."""
        ...

    def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
        """Add the gradients of step ``step`` to the encoder's parameters; figures of the loss."""
        ...

    def table_of(self, passages: Sequence[Passage]) -> Vectors | None:
        """The vectors of ``passages``, where they stay as they are while training goes on."""
        ...


class InBatch:
    """Both towers learn. Each rank encodes its share of the batch, and its queries meet the passages of all."""

    def __init__(self, rows: Sequence[TrainingRow], settings: TrainingSettings, seed: int) -> None:
        self._settings = settings
        self._sampler = BatchSampler(rows, settings.batch_size, settings.hard_negatives, seed)

    def steps(self, epochs: float) -> int:
        return self._sampler.steps(epochs)

    def batch(self, step: int) -> Batch:
        return self._sampler.batch(step)

    def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
        settings, batch = self._settings, self.batch(step)
        mine = share(len(batch.queries))
        texts = [passage_text(p) for p in batch.passages]
        here = share(len(texts))
        groups = [
            _chunks(encoder, batch.queries[mine], "query", settings),
            _chunks(encoder, texts[here], "passage", settings),
        ]
        found: list[ContrastiveLoss] = []

        def loss_of(parts: Sequence[Tensor]) -> Tensor:
            queries, passages = parts
            everything = gather(passages, len(texts))
            targets = batch.targets.rows(mine.start, mine.stop)
            found.append(_loss(queries, everything, targets, settings, encoder))
            return found[0].loss * (len(queries) / len(batch.queries))

        cached_backward(groups, loss_of, cached=settings.micro_batch is not None)
        return _figures(found[0])

    def table_of(self, _passages: Sequence[Passage]) -> None:
        return None


class AgainstTable:
    """The query tower learns against passages that stay as they are, encoded once.

    ``table`` [passages, d] holds the vectors of ``passages``, which must hold every gold of the rows. A softmax
    over all of them needs no sampling of negatives.
    """

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        passages: Sequence[Passage],
        table: Vectors,
        settings: FrozenSettings,
        seed: int,
    ) -> None:
        self._settings = settings
        self._sampler = BatchSampler(rows, settings.batch_size, settings.hard_negatives, seed)
        self._table = torch.from_numpy(table)
        self._places = {content_key(p): place for place, p in reversed(list(enumerate(passages)))}
        self._key = one_key([*passages, *(gold for row in rows for gold in row.positives)])
        self._columns = [self._key(p) for p in passages]

    def steps(self, epochs: float) -> int:
        return self._sampler.steps(epochs)

    def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
        settings = self._settings
        if settings.against == "all":
            queries, targets = self._sampler.queries_against(step, self._places, self._columns, self._key)
            table = self._table
        else:
            batch = self._sampler.batch(step)
            queries, targets = batch.queries, batch.targets
            table = self._table[[self._places[content_key(p)] for p in batch.passages]]
        mine = share(len(queries))
        table = table.to(encoder.device)
        found: list[ContrastiveLoss] = []

        def loss_of(parts: Sequence[Tensor]) -> Tensor:
            found.append(_loss(parts[0], table, targets.rows(mine.start, mine.stop), settings, encoder))
            return found[0].loss * (len(parts[0]) / len(queries))

        groups = [_chunks(encoder, queries[mine], "query", settings)]
        cached_backward(groups, loss_of, cached=settings.micro_batch is not None)
        return _figures(found[0])

    def table_of(self, passages: Sequence[Passage]) -> Vectors:
        """``passages`` must be among those of the table."""
        vectors: Vectors = self._table[[self._places[content_key(p)] for p in passages]].numpy()
        return vectors


def _chunks(encoder: Encoder, texts: Sequence[str], role: Role, settings: TrainingSettings) -> list[Embed]:
    if not texts:
        return [lambda: torch.zeros(0, encoder.dimension, device=encoder.device)]
    size = settings.micro_batch or len(texts)
    return [_embed(encoder, texts[start : start + size], role, settings) for start in range(0, len(texts), size)]


def _embed(encoder: Encoder, texts: Sequence[str], role: Role, settings: TrainingSettings) -> Embed:
    features = encoder.features(texts, role)

    def embed() -> Tensor:
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            return encoder.embed(features, role).float()

    return embed


def _loss(
    queries: Tensor, passages: Tensor, targets: Targets, settings: TrainingSettings, encoder: Encoder
) -> ContrastiveLoss:
    return info_nce(
        queries,
        passages,
        targets,
        temperature=settings.temperature,
        margin=settings.mask_margin,
        dimensions=settings.dimensions,
        cosine=encoder.settings.unit_length,
    )


def _figures(found: ContrastiveLoss) -> dict[str, float]:
    """``loss`` is the mean over this rank's queries."""
    return {"loss": float(found.loss.detach()), "accuracy": found.accuracy, "masked": found.masked}
