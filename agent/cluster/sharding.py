"""Searches vectors over several actors: the merged best hits of the shards are the best overall."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
from numpy.typing import NDArray

from agent.cluster.interface import Actor, WorkerLostError, answer_of
from sleuth.errors import RetrieverError

Vectors = NDArray[np.float32]
Found = tuple[Vectors, NDArray[np.int64]]


class ShardedSearch:
    """Largest inner products over consecutive shards of vectors; actor i holds ``sizes[i]`` rows.

    An actor that died is called again; on restart it reads its shard from disk.
    """

    def __init__(self, actors: Sequence[Actor], sizes: Sequence[int], dimension: int, timeout_s: float) -> None:
        self._actors = list(actors)
        self._sizes = list(sizes)
        self._offsets = [sum(self._sizes[:index]) for index in range(len(self._sizes))]
        self._timeout_s = timeout_s
        self.dimension = dimension

    def __len__(self) -> int:
        return sum(self._sizes)

    def search(self, queries: Vectors, k: int) -> Found:
        """Scores and rows [queries, k], best first, equal scores in order of row.

        Shards return the 64-bit scores they ranked by: in 32 bits, close scores would be equal.
        """
        deadline = time.monotonic() + self._timeout_s
        wanted = [min(k, size) for size in self._sizes]
        calls = [actor.call("ranked", queries, n) for actor, n in zip(self._actors, wanted, strict=True)]
        found = [
            self._answer(actor, call, queries, n, deadline)
            for actor, call, n in zip(self._actors, calls, wanted, strict=True)
        ]
        scores = np.concatenate([scores for scores, _ in found], axis=1)
        rows = np.concatenate([rows + start for (_, rows), start in zip(found, self._offsets, strict=True)], axis=1)
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        return np.take_along_axis(scores, order, 1).astype(np.float32), np.take_along_axis(rows, order, 1)

    def _answer(self, actor: Actor, call: Future[Found], queries: Vectors, k: int, deadline: float) -> Found:
        try:
            found: Found = answer_of(call, partial(actor.call, "ranked", queries, k), deadline)
            return found
        except TimeoutError:
            raise RetrieverError(f"{actor.name} did not answer within {self._timeout_s:g} s") from None
        except WorkerLostError as error:
            raise RetrieverError(f"a shard of the index is gone: {error}") from None


def shard_sizes(rows: int, shards: int) -> list[int]:
    """Sizes of ``shards`` consecutive shards of ``rows``, which differ by at most one; none is empty."""
    count = min(rows, shards)
    return [rows * (index + 1) // count - rows * index // count for index in range(count)]
