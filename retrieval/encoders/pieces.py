"""Encodes passages piece by piece, in one process or several, into the index of any encoder family."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from retrieval.encoders.family import Encoded, PassageEncoder
from retrieval.encoders.modalities import check_passages
from retrieval.store import PassageStore
from sleuth.artifacts import atomic_write
from sleuth.progress import expect
from sleuth.types import Passage

SHARD = 1024
"""Passages per piece, which are sorted by length, encoded and written to disk together."""
STATE = "encoded.json"

OnProgress = Callable[[int], None]
"""Called with the number of passages encoded so far."""

EncodePieces = Callable[[Path, Sequence[range]], Iterable[Encoded]]
"""Called with a store's folder and pieces of its passages; yields each piece's encoding, in order."""


class Passages(Protocol):
    """Passages by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, ordinal: int) -> Passage: ...


class IndexWriter(Protocol):
    """Writes a family's encoded passages to disk."""

    @property
    def plan(self) -> Mapping[str, Any]:
        """What written pieces depend on; existing pieces are kept only if it is unchanged."""
        ...

    @property
    def intact(self) -> bool:
        """Whether the files of existing pieces were still present when this was opened."""
        ...

    def write(self, start: int, encoded: Encoded) -> None:
        """Write the passages from ``start`` on, replacing existing ones; they are durable on return."""
        ...

    def finish(self) -> tuple[dict[str, Any], list[str]]:
        """Finish the index once all passages are written; returns its manifest fields and its files."""
        ...


def encode_store(
    store: PassageStore,
    encoder: PassageEncoder,
    writer: IndexWriter,
    folder: str | Path,
    *,
    batch_size: int = 32,
    shard: int = SHARD,
    elsewhere: EncodePieces | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Encode every passage of ``store`` and pass it to ``writer``, in order; ``folder`` records the progress.

    Pieces from an earlier run of the same encoder are kept, with the same result as an uninterrupted run. ``elsewhere``
    encodes pieces in other processes. Memory is one piece. Raises DataError for values that are not finite.
    """
    # a corpus of texts need not be read for it: its first passage is like all others
    check_passages(store if store.has_images else itertools.islice(store, 1), encoder.modalities, str(encoder.source))
    count, state = len(store), Path(folder) / STATE
    plan = {"encoder": encoder.tower_fingerprint("passage"), "passages": count, "shard": shard, **writer.plan}
    plan["batch_size"] = batch_size
    done = _done_before(state, plan) if writer.intact else 0
    pieces = pieces_of(count, shard, done)
    expect(on_progress, count)
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


def encode_piece(passages: Passages, encoder: PassageEncoder, piece: range, batch_size: int, **how: Any) -> Encoded:
    """Encode the passages of one piece; batches do not cross its boundaries, so they do not depend on other pieces."""
    return encoder.encode_passages([passages[ordinal] for ordinal in piece], batch_size, **how)


def encode_pieces(
    passages: Passages,
    encoder: PassageEncoder,
    pieces: Sequence[range],
    batch_size: int,
    on_progress: OnProgress | None = None,
) -> Iterator[Encoded]:
    for piece in pieces:
        yield encode_piece(passages, encoder, piece, batch_size, progress=_offset(on_progress, piece.start))


def nearest(encoder: PassageEncoder, queries: Encoded, pieces: Iterable[Encoded], k: int) -> tuple[Tensor, Tensor]:
    """Scores and indices [queries, at most k] of the best passages, best first, ties in passage order.

    Exact search with one piece in memory at a time, for passages without an index.
    """
    scores, numbers = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.long)
    asked, start = queries.to(encoder.device), 0
    for piece in pieces:
        found = encoder.family.scores(asked, piece.to(encoder.device))
        best = _best(found, k)
        scores, order = torch.cat([scores, found.gather(1, best).cpu()], 1).sort(dim=1, descending=True, stable=True)
        scores, numbers = scores[:, :k], torch.cat([numbers, best.cpu() + start], 1).gather(1, order)[:, :k]
        start += len(piece)
    return scores, numbers


def _best(scores: Tensor, k: int) -> Tensor:
    """The columns [rows, at most k] of the largest of each row, ascending; among equal ones the first."""
    if scores.shape[1] <= k:
        return torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
    values, places = scores.topk(k + 1)  # one more shows whether the last place is tied
    places = places[:, :k]
    tied = values[:, k - 1] == values[:, k]
    if tied.any():
        places[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return places.sort(dim=1).values


def _offset(on_progress: OnProgress | None, start: int) -> OnProgress | None:
    return (lambda done: on_progress(start + done)) if on_progress else None


def _done_before(path: Path, plan: Mapping[str, Any]) -> int:
    """Number of passages already encoded under the same plan."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    same = isinstance(state, dict) and {key: state.get(key) for key in plan} == dict(plan)
    return int(state["done"]) if same else 0
