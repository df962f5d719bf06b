"""Every passage of a store as a vector on disk, shard by shard, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retrieval.dense.vectors import SCALES, VECTORS, Dtype, StoredVectors, create_vectors
from retrieval.encoders.encoder import Encoder, Vectors
from retrieval.passages import passage_text
from retrieval.store import PassageStore
from sleuth.artifacts import atomic_write

SHARD = 1024
"""Passages that are sorted by length, encoded and then safe on disk together."""
STATE = "encoded.json"

OnProgress = Callable[[int], None]
"""Called with the number of passages encoded so far."""

EncodePieces = Callable[[Path, Sequence[range]], Iterable[Vectors]]
"""The folder of a store and pieces of its passages, to the vectors of each piece, in their order."""


def encode_corpus(
    store: PassageStore,
    encoder: Encoder,
    folder: str | Path,
    *,
    dtype: Dtype = "float32",
    batch_size: int = 32,
    shard: int = SHARD,
    elsewhere: EncodePieces | None = None,
    on_progress: OnProgress | None = None,
) -> StoredVectors:
    """Write the vectors of ``store`` into ``folder`` and return them, in the order of the store.

    Shards that an earlier run of the same encoder left there are kept: the result is that of a run never broken.
    ``elsewhere`` encodes shards in other processes. Memory is one shard. Raises DataError when a vector is not finite.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    count = len(store)
    plan = {
        "encoder": encoder.tower_fingerprint("passage"),
        "passages": count,
        "shard": shard,
        "dtype": dtype,
        "batch_size": batch_size,
    }
    done = _done_before(root, plan)
    vectors = create_vectors(root, count, encoder.dimension, dtype)
    pieces = [range(start, min(start + shard, count)) for start in range(done, count, shard)]
    made = elsewhere(store.folder, pieces) if elsewhere else _here(store, encoder, batch_size, pieces, on_progress)
    for piece, values in zip(pieces, made, strict=True):
        vectors.write(piece.start, values)
        vectors.flush()
        atomic_write(root / STATE, json.dumps(plan | {"done": piece.stop}))
        if on_progress:
            on_progress(piece.stop)
    if on_progress and done >= count:
        on_progress(count)
    return vectors


def encode_piece(store: PassageStore, encoder: Encoder, piece: range, batch_size: int, **how: Any) -> Vectors:
    """Vectors [passages, dimension] of one piece: batches are made within it, so that they do not depend on others."""
    return encoder.encode([passage_text(store[ordinal]) for ordinal in piece], "passage", batch_size, **how)


def _here(
    store: PassageStore, encoder: Encoder, batch_size: int, pieces: Sequence[range], on_progress: OnProgress | None
) -> Iterator[Vectors]:
    for piece in pieces:
        yield encode_piece(store, encoder, piece, batch_size, progress=_offset(on_progress, piece.start))


def _done_before(folder: Path, plan: Mapping[str, Any]) -> int:
    """Passages that the same plan has encoded already; none where their vectors are gone."""
    needed = [VECTORS] + ([SCALES] if plan["dtype"] == "int8" else [])
    if not all((folder / name).exists() for name in needed):
        return 0
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    same = isinstance(state, dict) and {key: state.get(key) for key in plan} == dict(plan)
    return int(state["done"]) if same else 0


def _offset(on_progress: OnProgress | None, start: int) -> OnProgress | None:
    return (lambda count: on_progress(start + count)) if on_progress else None
