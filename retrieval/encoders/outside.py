"""Encoders of other packages, named by dotted path.

    class MeanColour:
        dimension = 3
        modalities = Modalities(query=frozenset({"text"}), passage=frozenset({"image"}))
        def encode_queries(self, queries): ...      # float32 [queries, dimension]
        def encode_passages(self, passages): ...    # float32 [passages, dimension]

``sleuth index CORPUS --out INDEX --kind dense --encoder my_package.module:MeanColour`` makes an index with it.
``modalities`` defaults to text. ``fingerprint`` should change with the weights; by default it is that of the options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from retrieval.encoders.config import OutsideEncoderSettings, Role
from retrieval.encoders.dense import DENSE
from retrieval.encoders.family import Encoded
from retrieval.encoders.modalities import TEXT, Modalities
from sleuth.artifacts import fingerprint_of
from sleuth.errors import DataError
from sleuth.plugins import make_object
from sleuth.types import Passage


class OutsideEncoder:
    """A class named in a config, as a `PassageEncoder` of one vector per text or picture."""

    family = DENSE
    device = torch.device("cpu")

    def __init__(self, settings: OutsideEncoderSettings) -> None:
        self.settings = settings
        self.source: str | None = settings.kind
        self._made = make_object(
            settings.kind,
            "encoder",
            options=settings.options,
            methods=("encode_queries", "encode_passages"),
            attributes=("dimension",),
            see="it needs dimension, encode_queries(queries) and encode_passages(passages)",
        )
        self.dimension = int(self._made.dimension)
        self.modalities: Modalities = getattr(self._made, "modalities", TEXT)

    @property
    def fingerprint(self) -> str:
        own = getattr(self._made, "fingerprint", "")
        return fingerprint_of({**self.settings.model_dump(mode="json"), "fingerprint": own})

    def tower_fingerprint(self, _role: Role) -> str:
        return self.fingerprint

    def encode_texts(
        self, texts: Sequence[str], role: Role, batch_size: int = 32, progress: Callable[[int], None] | None = None
    ) -> Encoded:
        if role == "query":
            return self._in_batches(self._made.encode_queries, texts, batch_size, progress)
        return self.encode_passages([Passage("", "", text) for text in texts], batch_size, progress)

    def encode_passages(
        self, passages: Sequence[Passage], batch_size: int = 32, progress: Callable[[int], None] | None = None
    ) -> Encoded:
        return self._in_batches(self._made.encode_passages, passages, batch_size, progress)

    def _in_batches(
        self,
        encode: Callable[[Sequence[Any]], Any],
        items: Sequence[Any],
        batch_size: int,
        progress: Callable[[int], None] | None,
    ) -> Encoded:
        parts = [np.zeros((0, self.dimension), np.float32)]
        for start in range(0, len(items), batch_size):
            batch = items[start : start + batch_size]
            made = np.asarray(encode(batch), dtype=np.float32)
            if made.shape != (len(batch), self.dimension):
                raise DataError(
                    f"encoder {self.source} returned an array of shape {made.shape} for {len(batch)} inputs",
                    f"it should be ({len(batch)}, {self.dimension})",
                )
            if not np.isfinite(made).all():
                raise DataError(f"encoder {self.source} gave a vector that is not finite (NaN)")
            parts.append(made)
            if progress:
                progress(start + len(batch))
        return Encoded(torch.from_numpy(np.concatenate(parts)))


def open_outside(settings: OutsideEncoderSettings, *, device: str | None = None) -> OutsideEncoder:
    """The encoder that ``settings`` name; it chooses its own device."""
    del device
    return OutsideEncoder(settings)
