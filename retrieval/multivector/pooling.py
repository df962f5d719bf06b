"""Fewer vectors a passage: similar ones become their mean.

The token vectors of a passage are clustered by Ward's method on cosine distance into 1 / ``factor`` as many groups
(Clavié, Chaffin and Adams 2024), by sentence-transformers' ``HierarchicalTokenPooling``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling
from torch.nn.utils.rnn import pad_sequence

from retrieval.encoders.family import Encoded, PassageEncoder
from retrieval.encoders.pieces import IndexWriter
from sleuth.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pooling:
    """Makes of the vectors of a passage ``factor`` times fewer, and at least one. 1: leaves them as they are."""

    factor: float
    unit: bool
    """Whether means are given length 1, as the vectors of the encoder have."""

    def __call__(self, encoded: Encoded) -> Encoded:
        if self.factor == 1 or not len(encoded):
            return encoded
        assert encoded.mask is not None
        pooling = HierarchicalTokenPooling(self.factor, num_protected_tokens=0, normalize_embeddings=self.unit)
        pairs = zip(encoded.values, encoded.mask, strict=True)
        made = [pooling.pool_one(values[mask]) if mask.any() else values[mask] for values, mask in pairs]
        lengths = torch.tensor([len(vectors) for vectors in made])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        return Encoded(pad_sequence(made, batch_first=True), mask)


def pooling_of(factor: float | None, encoder: PassageEncoder) -> Pooling:
    """Raises ConfigError for a factor below 1."""
    if factor is not None and not 1 <= factor < float("inf"):
        raise ConfigError(f"pool_factor is {factor}, it must be 1 or more", "2 halves the vectors of a passage")
    return Pooling(factor or 1.0, bool(getattr(encoder.settings, "unit_length", False)))


@dataclass(frozen=True, slots=True)
class PoolingWriter:
    """Hands ``inner`` pooled passages."""

    inner: IndexWriter
    pooling: Pooling

    @property
    def plan(self) -> Mapping[str, Any]:
        return {**self.inner.plan, "pool_factor": self.pooling.factor}

    @property
    def intact(self) -> bool:
        return self.inner.intact

    def write(self, start: int, encoded: Encoded) -> None:
        self.inner.write(start, self.pooling(encoded))

    def finish(self) -> tuple[dict[str, Any], list[str]]:
        return self.inner.finish()
