"""What a step minimises: InfoNCE within a batch, or against a table of frozen passages, and a family's own terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from sentence_transformers.util import get_world_size
from torch import Tensor

from retrieval.encoders.config import Role
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded
from retrieval.passages import content_key, passage_text
from retrieval.training.config import FrozenSettings, TrainingSettings
from retrieval.training.frozen import Table
from retrieval.training.gradient_cache import Embed, cached_backward
from retrieval.training.loss import Columns, ContrastiveLoss, Targets, info_nce
from retrieval.training.ranks import gather, rank_slice
from retrieval.training.rows import TrainingRow
from retrieval.training.sampling import Batch, BatchSampler, one_key
from sleuth.types import Passage


class Objective(Protocol):
    def steps(self, epochs: float) -> int:
        """Steps that go through the rows ``epochs`` times."""
        ...

    def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
        """Add the gradients of step ``step`` to the encoder's parameters; figures of the loss."""
        ...

    def table_of(self, passages: Sequence[Passage]) -> Encoded | None:
        """What ``passages`` are encoded to, where they stay as they are while training goes on."""
        ...


@dataclass(frozen=True, slots=True)
class Scored:
    """The batch of a step as the encoder sees it, the whole of it on every rank; ``scores`` are [N, M]."""

    step: int
    batch: Batch
    queries: Encoded
    passages: Encoded
    scores: Tensor


Terms = Callable[[Scored], Mapping[str, Tensor]]
"""What is added to InfoNCE, each term a scalar with its weight: a regulariser of what was encoded (FLOPS), or a
distance of the scores from a teacher's (distillation)."""


class InBatch:
    """Both towers learn. Each rank encodes its share of the batch, and its queries meet the passages of all."""

    def __init__(
        self, rows: Sequence[TrainingRow], settings: TrainingSettings, seed: int, terms: Terms | None = None
    ) -> None:
        self._settings = settings
        self._sampler = BatchSampler(rows, settings.batch_size, settings.hard_negatives, seed)
        self._terms = terms

    def steps(self, epochs: float) -> int:
        return self._sampler.steps(epochs)

    def batch(self, step: int) -> Batch:
        return self._sampler.batch(step)

    def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
        return _backward(encoder, self._settings, step, self.batch(step), None, self._terms)

    def table_of(self, _passages: Sequence[Passage]) -> None:
        return None


class AgainstTable:
    """The query tower learns against passages that stay as they are, encoded once.

    ``table`` must hold every gold of the rows. A softmax over all of it needs no sampling of negatives.
    """

    def __init__(
        self,
        rows: Sequence[TrainingRow],
        table: Table,
        settings: FrozenSettings,
        seed: int,
        terms: Terms | None = None,
    ) -> None:
        self._settings = settings
        self._sampler = BatchSampler(rows, settings.batch_size, settings.hard_negatives, seed)
        self._table = table
        self._places = table.places()
        self._key = one_key([*table.passages, *(gold for row in rows for gold in row.positives)])
        self._columns = Columns([self._key(p) for p in table.passages])
        self._moved = table.encoded
        self._terms = terms

    def steps(self, epochs: float) -> int:
        return self._sampler.steps(epochs)

    def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
        device = encoder.device
        if self._settings.against == "all":
            queries, targets = self._sampler.queries_against(step, self._places, self._columns, self._key, device)
            batch = Batch(queries, self._table.passages, targets)
            table = self._moved = self._moved.to(device)  # copied once
        else:
            batch = self._sampler.batch(step)
            table = self._table.encoded[[self._places[content_key(p)] for p in batch.passages]].to(device)
        return _backward(encoder, self._settings, step, batch, table, self._terms)

    def table_of(self, passages: Sequence[Passage]) -> Encoded:
        """``passages`` must be among those of the table."""
        return self._table.select(passages)


def contrast(
    encoder: Encoder, queries: Encoded, passages: Encoded, targets: Targets, settings: TrainingSettings
) -> tuple[ContrastiveLoss, Tensor]:
    """InfoNCE of ``queries`` and ``passages``, and their scores [N, M].

    With ``settings.dimensions`` (Matryoshka, Kusupati et al. 2022) the mean of the losses on the first so many
    dimensions each; figures and scores are those of the widest.
    """
    sizes = settings.dimensions or [queries.values.shape[-1]]
    unit = encoder.settings.unit_length
    scores = [encoder.family.scores(queries.cut(n, unit), passages.cut(n, unit)) for n in sizes]
    parts = [info_nce(s, targets, temperature=settings.temperature, margin=settings.mask_margin) for s in scores]
    widest = sizes.index(max(sizes))
    loss = torch.stack([part.loss for part in parts]).mean()
    return ContrastiveLoss(loss, parts[widest].accuracy, parts[widest].masked), scores[widest]


def _backward(
    encoder: Encoder,
    settings: TrainingSettings,
    step: int,
    batch: Batch,
    table: Encoded | None,
    terms: Terms | None,
) -> dict[str, float]:
    """Add this rank's part of the gradients of a step; ``table`` holds the batch's passages where they are frozen.

    Ranks add their gradients up, so each weighs its mean by its share of the queries, and terms, which all of them
    work out for the whole batch, by their number. ``loss`` in the figures is the mean over this rank's queries.
    """
    count, mine = len(batch.queries), rank_slice(len(batch.queries))
    groups = [_chunks(encoder, batch.queries[mine], "query", settings)]
    if table is None:
        texts = [passage_text(p) for p in batch.passages]
        groups.append(_chunks(encoder, texts[rank_slice(len(texts))], "passage", settings))
    figures: dict[str, float] = {}

    def loss_of(parts: Sequence[Encoded]) -> Tensor:
        queries = parts[0]
        passages = gather(parts[1], len(batch.passages)) if table is None else table
        found, scores = contrast(encoder, queries, passages, batch.targets.rows(mine.start, mine.stop), settings)
        figures.update(loss=float(found.loss.detach()), accuracy=found.accuracy, masked=found.masked)
        loss = found.loss * (len(queries) / count)
        if terms is None:
            return loss
        whole = Scored(step, batch, gather(queries, count), passages, gather(Encoded(scores), count).values)
        for name, term in terms(whole).items():
            figures[name] = float(term.detach())
            loss = loss + term / get_world_size()
        return loss

    cached_backward(groups, loss_of, cached=settings.micro_batch is not None, device=encoder.device)
    return figures


def _chunks(encoder: Encoder, texts: Sequence[str], role: Role, settings: TrainingSettings) -> list[Embed]:
    if not texts:
        return [lambda: encoder.nothing(role)]
    size = settings.micro_batch or len(texts)
    return [_embed(encoder, texts[start : start + size], role, settings) for start in range(0, len(texts), size)]


def _embed(encoder: Encoder, texts: Sequence[str], role: Role, settings: TrainingSettings) -> Embed:
    features = encoder.features(texts, role)

    def embed() -> Encoded:
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            return encoder.embed(features, role)

    return embed
