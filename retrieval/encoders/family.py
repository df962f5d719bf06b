"""The seam between families of encoders and all that trains, encodes and searches with them.

An encoder gives tensors and a mask (`Encoded`); its family says how they are read off a tower's outputs and how those
of queries and passages are compared. Nothing else in the training loop, in dev figures or in the build of an index
knows how many vectors a text has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from sentence_transformers.util import cat_padded_token_embeddings
from torch import Tensor
from torch.nn import functional

from retrieval.encoders.config import EncoderSettings


@dataclass(frozen=True, slots=True)
class Encoded:
    """Texts as their encoder gives them, float32.

    ``values``: one vector a text [texts, d], a weight a word [texts, vocabulary], or several vectors a text
    [texts, tokens, d]. ``mask``: bool [texts, tokens], which of several vectors count; None where all do.
    """

    values: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> Encoded:
        """Those texts: a slice, or their numbers."""
        return Encoded(self.values[rows], None if self.mask is None else self.mask[rows])

    def to(self, device: torch.device | str) -> Encoded:
        return Encoded(self.values.to(device), None if self.mask is None else self.mask.to(device))

    def cut(self, dimensions: int | None, unit_length: bool) -> Encoded:
        """Vectors cut to their first ``dimensions``, and normalised again where they had ``unit_length``."""
        if dimensions is None or dimensions == self.values.shape[-1]:
            return self
        short = self.values[..., :dimensions]
        return Encoded(functional.normalize(short, dim=-1) if unit_length else short, self.mask)


def join(parts: Sequence[Encoded]) -> Encoded:
    """All texts of ``parts``, at least one part, in order; several vectors are padded to the most that a text has."""
    masks = [part.mask for part in parts if part.mask is not None]
    values = [part.values for part in parts]
    return Encoded(*cat_padded_token_embeddings(values, masks)) if masks else Encoded(torch.cat(values))


class Family(Protocol):
    """What sets a family of encoders apart."""

    @property
    def kind(self) -> str:
        """Its name, which its indexes and retrievers have too."""
        ...

    def read(self, outputs: Mapping[str, Tensor], settings: EncoderSettings) -> Encoded:
        """What a tower's ``outputs`` say of the texts, with their gradients."""
        ...

    def scores(self, queries: Encoded, passages: Encoded) -> Tensor:
        """How well each passage answers each query [N, M], with gradients."""
        ...


@dataclass(frozen=True, slots=True)
class Dense:
    """One vector a text, compared by inner product."""

    kind: str = "dense"

    def read(self, outputs: Mapping[str, Tensor], settings: EncoderSettings) -> Encoded:
        vectors = outputs["sentence_embedding"].float()[:, : settings.dimensions]
        return Encoded(functional.normalize(vectors, dim=-1) if settings.unit_length else vectors)

    def scores(self, queries: Encoded, passages: Encoded) -> Tensor:
        return queries.values @ passages.values.T


DENSE = Dense()
