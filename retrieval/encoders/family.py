"""The interface between encoder families and the code that trains, encodes and searches with them.

An encoder returns tensors and a mask (`Encoded`); its family defines how they are read from a tower's outputs and how
queries and passages are compared. Nothing else in training, dev evaluation or index building knows how many vectors
a text has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from sentence_transformers.util import cat_padded_token_embeddings
from torch import Tensor
from torch.nn import functional

from retrieval.encoders.config import EncoderSettings, Role
from retrieval.encoders.modalities import Modalities
from sleuth.settings import Settings
from sleuth.types import Passage

OnEncoded = Callable[[int], None]
"""Called with the number of texts encoded so far."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Encoded texts, in float32, or in float64 if the model is.

    ``values``: one vector per text [texts, d], one weight per word [texts, vocabulary], or several vectors per text
    [texts, tokens, d]. ``mask``: bool [texts, tokens], which of several vectors count; None if all do.
    """

    values: Tensor
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: Any) -> Encoded:
        """The selected texts, by slice or indices."""
        return Encoded(self.values[rows], None if self.mask is None else self.mask[rows])

    def to(self, device: torch.device | str) -> Encoded:
        return Encoded(self.values.to(device), None if self.mask is None else self.mask.to(device))

    def cut(self, dimensions: int | None, unit_length: bool) -> Encoded:
        """Vectors truncated to their first ``dimensions``, and renormalised if ``unit_length``."""
        if dimensions is None or dimensions == self.values.shape[-1]:
            return self
        short = self.values[..., :dimensions]
        return Encoded(functional.normalize(short, dim=-1) if unit_length else short, self.mask)


def single(values: Tensor) -> Tensor:
    """``values`` in float32 at least: scores and losses of half precision would round too coarsely."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def join(parts: Sequence[Encoded]) -> Encoded:
    """Concatenate one or more ``parts``; multi-vector texts are padded to the longest."""
    masks = [part.mask for part in parts if part.mask is not None]
    values = [part.values for part in parts]
    return Encoded(*cat_padded_token_embeddings(values, masks)) if masks else Encoded(torch.cat(values))


class Family(Protocol):
    """What differs between families of encoders."""

    @property
    def kind(self) -> str:
        """Its name, also used by its indexes and retrievers."""
        ...

    def read(self, outputs: Mapping[str, Tensor], settings: EncoderSettings) -> Encoded:
        """The encoded texts from a tower's ``outputs``, with gradients."""
        ...

    def scores(self, queries: Encoded, passages: Encoded) -> Tensor:
        """The score of each passage for each query [N, M], with gradients."""
        ...


class PassageExpander(Protocol):
    """Adds terms to passages before they are encoded."""

    @property
    def fingerprint(self) -> str: ...

    def __call__(self, texts: Sequence[str], tokenizer: Any, settings: EncoderSettings) -> list[str]:
        """The ``texts`` with terms added, no longer for ``tokenizer`` than ``settings`` allow where it can tell."""
        ...

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids to append to the tokens of each text; empty where ``__call__`` has added the terms."""
        ...


class PassageEncoder(Protocol):
    """What building and searching an index need of an encoder: ours, or one of another package."""

    @property
    def family(self) -> Family: ...

    @property
    def settings(self) -> Settings: ...

    @property
    def source(self) -> str | None:
        """What it is loaded from; None if it has not been saved yet."""
        ...

    @property
    def modalities(self) -> Modalities: ...

    @property
    def dimension(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def fingerprint(self) -> str:
        """Digest of all that determines its vectors."""
        ...

    def tower_fingerprint(self, role: Role, /) -> str: ...

    def encode_texts(
        self, texts: Sequence[str], role: Role, batch_size: int = 32, progress: OnEncoded | None = None
    ) -> Encoded: ...

    def encode_passages(
        self, passages: Sequence[Passage], batch_size: int = 32, progress: OnEncoded | None = None
    ) -> Encoded: ...
