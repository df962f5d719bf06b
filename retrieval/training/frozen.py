"""Passages that stay as they are while the query tower learns: encoded once, or taken from an index made before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from retrieval.dense.retriever import open_dense, read_dense_manifest
from retrieval.dense.vectors import open_vectors
from retrieval.encoders.encoder import Encoder, Vectors
from retrieval.passages import passage_text
from retrieval.store import PassageStore
from retrieval.training.sampling import content_key
from sleuth.errors import ConfigError
from sleuth.types import Passage

OnCount = Callable[[int, int], None]
"""Called as (passages encoded, passages to encode)."""


def freeze(
    encoder: Encoder, needed: Sequence[Passage], index: Path | None, on_progress: OnCount
) -> tuple[list[Passage], Vectors]:
    """Distinct passages and their vectors [passages, d]: all of ``index``, if any, then what else is ``needed``.

    Raises ArtifactError when the index was made by another passage tower.
    """
    known = _of_index(index, encoder) if index else {}
    missing = list({content_key(p): p for p in needed if content_key(p) not in known}.values())
    new = encoder.encode(
        [passage_text(p) for p in missing], "passage", progress=lambda done: on_progress(done, len(missing))
    )
    if index is None:
        return missing, new
    old = open_vectors(index).read(np.array([row for row, _ in known.values()]))
    return [*(passage for _, passage in known.values()), *missing], np.concatenate([old, new])


def _of_index(index: Path, encoder: Encoder) -> dict[str, tuple[int, Passage]]:
    """Row and passage by content; of equal passages the first."""
    kind = read_dense_manifest(index)["index_type"]
    if kind != "flat":
        raise ConfigError(f"{index} is of type {kind}, which keeps no vectors", "name a flat index")
    open_dense(index, encoder)  # raises where it does not fit
    found: dict[str, tuple[int, Passage]] = {}
    for row, passage in enumerate(PassageStore(index)):
        found.setdefault(content_key(passage), (row, passage))
    return found
