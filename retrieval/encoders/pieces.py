"""Passages encoded piece by piece, in one process or several, into the index of whichever family encodes them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded
from retrieval.passages import passage_text
from retrieval.store import PassageStore
from sleuth.artifacts import atomic_write
from sleuth.types import Passage

SHARD = 1024
"""Passages that are sorted by length, encoded and then safe on disk together."""
STATE = "encoded.json"

OnProgress = Callable[[int], None]
"""Called with the number of passages encoded so far."""

EncodePieces = Callable[[Path, Sequence[range]], Iterable[Encoded]]
"""The folder of a store and pieces of its passages, to what each piece became, in their order."""


class Passages(Protocol):
    """Passages by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, ordinal: int) -> Passage: ...


class IndexWriter(Protocol):
    """How a family keeps on disk what it encoded."""

    @property
    def plan(self) -> Mapping[str, Any]:
        """What pieces written before depend on: they count only where it is the same."""
        ...

    @property
    def intact(self) -> bool:
        """Whether the files of pieces written before were still there when this was opened."""
        ...

    def write(self, start: int, encoded: Encoded) -> None:
        """Keep the passages from ``start`` on, safe on disk on return; what was there from ``start`` on is replaced."""
        ...

    def finish(self) -> tuple[dict[str, Any], list[str]]:
        """Close the index, all passages written: what its manifest says of it, and the files that it consists of."""
        ...


def encode_store(
    store: PassageStore,
    encoder: Encoder,
    writer: IndexWriter,
    folder: str | Path,
    *,
    batch_size: int = 32,
    shard: int = SHARD,
    elsewhere: EncodePieces | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Hand every passage of ``store`` to ``writer``, in order; ``folder`` remembers how far that went.

    Pieces that an earlier run of the same encoder left there are kept: the result is that of a run never broken.
    ``elsewhere`` encodes pieces in other processes. Memory is one piece. Raises DataError for what is not finite.
    """
    count, state = len(store), Path(folder) / STATE
    plan = {"encoder": encoder.tower_fingerprint("passage"), "passages": count, "shard": shard, **writer.plan}
    plan["batch_size"] = batch_size
    done = _done_before(state, plan) if writer.intact else 0
    pieces = pieces_of(count, shard, done)
    here = encode_pieces(store, encoder, pieces, batch_size, on_progress)
    made = elsewhere(store.folder, pieces) if elsewhere else here
    for piece, encoded in zip(pieces, made, strict=True):
        writer.write(piece.start, encoded)
        atomic_write(state, json.dumps(plan | {"done": piece.stop}))
        if on_progress:
            on_progress(piece.stop)
    if on_progress and done >= count:
        on_progress(count)


def pieces_of(count: int, size: int = SHARD, start: int = 0) -> list[range]:
    return [range(first, min(first + size, count)) for first in range(start, count, size)]


def encode_piece(passages: Passages, encoder: Encoder, piece: range, batch_size: int, **how: Any) -> Encoded:
    """The passages of one piece: batches are made within it, so that they do not depend on others."""
    return encoder.encode_texts([passage_text(passages[ordinal]) for ordinal in piece], "passage", batch_size, **how)


def encode_pieces(
    passages: Passages,
    encoder: Encoder,
    pieces: Sequence[range],
    batch_size: int,
    on_progress: OnProgress | None = None,
) -> Iterator[Encoded]:
    for piece in pieces:
        yield encode_piece(passages, encoder, piece, batch_size, progress=_offset(on_progress, piece.start))


def nearest(encoder: Encoder, queries: Encoded, pieces: Iterable[Encoded], k: int) -> tuple[Tensor, Tensor]:
    """The scores and numbers [queries, at most k] of the best passages, best first, equal ones in their order.

    Exact, and held in memory one piece at a time: for passages that have no index.
    """
    scores, numbers = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    asked, start = queries.to(encoder.device), 0
    for piece in pieces:
        found = encoder.family.scores(asked, piece.to(encoder.device)).cpu()
        new = torch.arange(start, start + len(piece)).expand(len(queries), -1)
        scores, order = torch.cat([scores, found], 1).sort(dim=1, descending=True, stable=True)
        scores, numbers = scores[:, :k], torch.cat([numbers, new], 1).gather(1, order)[:, :k]
        start += len(piece)
    return scores, numbers


def _offset(on_progress: OnProgress | None, start: int) -> OnProgress | None:
    return (lambda done: on_progress(start + done)) if on_progress else None


def _done_before(path: Path, plan: Mapping[str, Any]) -> int:
    """Passages that the same plan has encoded already."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    same = isinstance(state, dict) and {key: state.get(key) for key in plan} == dict(plan)
    return int(state["done"]) if same else 0
