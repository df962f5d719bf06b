"""What a step minimises: InfoNCE within a batch, or against a table of frozen passages, and a family's own terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from sentence_transformers.util import get_world_size
from torch import Tensor

from retrieval.encoders.config import Role
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded
from retrieval.encoders.inputs import Input, kind_of
from retrieval.instructed import by_instruction
from retrieval.passages import content_key
from retrieval.training.config import FrozenSettings, TrainingSettings
from retrieval.training.directions import beside
from retrieval.training.frozen import Table
from retrieval.training.gradient_cache import Embed, cached_backward
from retrieval.training.instructions import in_order, instructed
from retrieval.training.learning import Objective
from retrieval.training.loss import Columns, ContrastiveLoss, Targets, info_nce
from retrieval.training.ranks import gather, rank_slice
from retrieval.training.row import TrainingRow
from retrieval.training.sampling import Batch, one_key, sampler_of
from sleuth.types import Passage

_ALL = slice(None)


class EncoderObjective(Objective[Encoder], Protocol):
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
        self._sampler = sampler_of(rows, settings, seed)
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

    ``table`` must hold every passage of the rows. A softmax over all of it needs no sampling of negatives.
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
        self._sampler = sampler_of(rows, settings, seed)
        self._table = table
        self._places = table.places()
        key = one_key([*table.passages, *(gold for row in rows for gold in row.positives)])
        self._columns = Columns([key(p) for p in table.passages], key)
        self._moved = table.encoded
        self._terms = terms

    def steps(self, epochs: float) -> int:
        return self._sampler.steps(epochs)

    def backward(self, encoder: Encoder, step: int) -> dict[str, float]:
        device = encoder.device
        if self._settings.against == "all":
            batch = self._sampler.batch_against(step, self._table.passages, self._places, self._columns, device)
            table = self._moved = self._moved.to(device)  # copied once
        else:
            batch = self._sampler.batch(step)
            table = self._table.encoded[[self._places[content_key(p)] for p in batch.passages]].to(device)
        return _backward(encoder, self._settings, step, batch, table, self._terms)

    def table_of(self, passages: Sequence[Passage]) -> Encoded:
        """``passages`` must be among those of the table."""
        return self._table.select(passages)


def contrast(
    encoder: Encoder,
    queries: Encoded,
    passages: Encoded,
    targets: Targets,
    settings: TrainingSettings,
    everyone: Encoded | None = None,
    mine: slice = _ALL,
    weights: Sequence[float] = (),
) -> tuple[ContrastiveLoss, Tensor]:
    """InfoNCE of ``queries`` and ``passages``, and their scores [N, M].

    ``targets`` are those of all queries of the batch, ``mine`` the part of this rank; further directions need
    ``everyone``, all queries, too (None: they are ``queries``). With ``settings.dimensions`` (Matryoshka, Kusupati et
    al. 2022) the mean of the losses on the first so many dimensions each; figures and scores are those of the widest.
    """
    sizes = settings.dimensions or [queries.values.shape[-1]]
    unit = encoder.settings.unit_length
    scores, parts = [], []
    for n in sizes:
        own, others, found = (part.cut(n, unit) for part in (queries, everyone or queries, passages))
        scores.append(encoder.family.scores(own, found))
        parts.append(
            info_nce(
                scores[-1],
                targets.rows(mine),
                temperature=settings.temperature,
                margin=settings.mask_margin,
                hardness=settings.hardness,
                beside=beside(settings.directions, encoder.family, own, others, found, targets, mine),
                joint=settings.partition == "joint",
                weights=weights[mine],
            )
        )
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
    groups = [_chunks(encoder, batch.queries[mine], "query", settings, batch.instructions[mine])]
    weight = settings.distillation.contrastive if settings.distillation else 1.0
    if table is None:
        read = encoder.inputs_of(batch.passages)
        groups.append(_chunks(encoder, read[rank_slice(len(read))], "passage", settings))
    figures: dict[str, float] = {}

    def loss_of(parts: Sequence[Encoded]) -> Tensor:
        queries = parts[0]
        passages = gather(parts[1], len(batch.passages)) if table is None else table
        everyone = gather(queries, count) if len(settings.directions) > 1 else None
        found, scores = contrast(encoder, queries, passages, batch.targets, settings, everyone, mine, batch.weights)
        figures.update(loss=float(found.loss.detach()), accuracy=found.accuracy, masked=found.masked)
        loss = found.loss * (weight * len(queries) / count)
        if terms is None:
            return loss
        whole = Scored(step, batch, gather(queries, count), passages, gather(Encoded(scores), count).values)
        for name, term in terms(whole).items():
            figures[name] = float(term.detach())
            loss = loss + term / get_world_size()
        return loss

    cached_backward(groups, loss_of, cached=settings.micro_batch is not None, device=encoder.device)
    return figures


def _chunks(
    encoder: Encoder, inputs: Sequence[Input], role: Role, settings: TrainingSettings, instructions: Sequence[str] = ()
) -> list[Embed]:
    if not inputs:
        return [lambda: encoder.nothing(role)]
    size = settings.micro_batch or len(inputs)
    parts = [slice(start, start + size) for start in range(0, len(inputs), size)]
    asked = instructions or [""] * len(inputs)
    return [_embed(encoder, inputs[part], asked[part], role, settings) for part in parts]


def _embed(
    encoder: Encoder, inputs: Sequence[Input], instructions: Sequence[str], role: Role, settings: TrainingSettings
) -> Embed:
    """Inputs of one kind and one instruction go through the model together. Texts are tokenized once; pictures are
    read whenever they are needed, so that no more are in memory than a chunk has."""
    groups = [
        (instruction, [place for place in places if kind_of(inputs[place]) == kind])
        for instruction, places in by_instruction(instructions).items()
        for kind in sorted({kind_of(inputs[place]) for place in places})
    ]

    def features(instruction: str, places: Sequence[int]) -> dict[str, Any]:
        return instructed(encoder, instruction).features([inputs[place] for place in places], role)

    texts = [
        features(instruction, places) if isinstance(inputs[places[0]], str) else None for instruction, places in groups
    ]

    def embed() -> Encoded:
        with torch.autocast(encoder.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
            found = [encoder.embed(known or features(*group), role) for known, group in zip(texts, groups, strict=True)]
            return in_order(found, [places for _, places in groups])

    return embed
