"""Every passage of a store as a vector on disk, shard by shard, so that a killed run goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from retrieval.dense.vectors import Dtype, StoredVectors, create_vectors
from retrieval.encoders.encoder import Encoder
from retrieval.passages import passage_text
from retrieval.store import PassageStore
from sleuth.artifacts import atomic_write

SHARD = 4096
"""Passages that are sorted by length, encoded and then safe on disk together."""
STATE = "encoded.json"

OnProgress = Callable[[int], None]
"""Called with the number of passages encoded so far."""


def encode_corpus(
    store: PassageStore,
    encoder: Encoder,
    folder: str | Path,
    *,
    dtype: Dtype = "float32",
    batch_size: int = 32,
    shard: int = SHARD,
    on_progress: OnProgress | None = None,
) -> StoredVectors:
    """Write the vectors of ``store`` into ``folder`` and return them, in the order of the store.

    Shards that an earlier run of the same encoder left there are kept: the result is that of a run never broken.
    Memory is one shard. Raises DataError when a vector is not finite.
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
    done = _done_before(root / STATE, plan)
    vectors = create_vectors(root, count, encoder.dimension, dtype)
    for start in range(done, count, shard):
        texts = [passage_text(store[ordinal]) for ordinal in range(start, min(start + shard, count))]
        report = _offset(on_progress, start)
        vectors.write(start, encoder.encode(texts, "passage", batch_size, report))
        vectors.flush()
        atomic_write(root / STATE, json.dumps(plan | {"done": start + len(texts)}))
    if on_progress and done >= count:
        on_progress(count)
    return vectors


def _done_before(path: Path, plan: Mapping[str, Any]) -> int:
    """Passages that the same plan has encoded already."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    same = isinstance(state, dict) and {key: state.get(key) for key in plan} == dict(plan)
    return int(state["done"]) if same else 0


def _offset(on_progress: OnProgress | None, start: int) -> OnProgress | None:
    return (lambda count: on_progress(start + count)) if on_progress else None
