"""The caches that a policy keeps between turns, within a bound in bytes.

The batches of a rollout are played in the same order every turn, so the one used last is the one that is needed again
last. It is therefore evicted first: evicting the least recently used would drop each batch just before its turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain

from agent.policies.kv_cache import RowCache


class KeptCaches:
    """Caches in the order of their next use, of at most ``limit`` bytes; None: no bound.

    While a batch is sampled its cache counts too, with the most that it may grow to. It alone may exceed the bound,
    as what bounds a batch is its rows; it is not kept then. Rows that are not kept are encoded again when they come
    back.
    """

    def __init__(self, limit: int | None) -> None:
        self._limit = limit
        self._ahead: list[RowCache] = []
        self._behind: list[RowCache] = []
        self._bytes_of_a_token = 0.0

    @property
    def nbytes(self) -> int:
        return sum(cache.nbytes for cache in chain(self._ahead, self._behind))

    def once(self) -> Iterator[RowCache]:
        """Every kept cache, taken out; whoever uses one puts it back with ``keep``."""
        self._ahead, self._behind = self._behind, []
        while self._ahead:
            yield self._ahead.pop(0)

    def make_room(self, rows: int, columns: int) -> None:
        """Evict what does not fit beside a batch of ``rows`` that will grow to ``columns`` tokens.

        The size of a token is known from the first cache kept; before that there is nothing to evict.
        """
        if self._limit is None:
            return
        wanted = rows * columns * self._bytes_of_a_token
        while (self._behind or self._ahead) and self.nbytes + wanted > self._limit:
            (self._behind or self._ahead).pop()

    def keep(self, cache: RowCache) -> None:
        self._bytes_of_a_token = cache.nbytes / (len(cache.episodes) * cache.allocated)
        if self._limit is None or cache.nbytes <= self._limit:
            self._behind.append(cache)

    def release(self, episodes: Iterable[str]) -> None:
        """Drop the caches all of whose rows are among ``episodes``."""
        gone = set(episodes)
        self._ahead = [cache for cache in self._ahead if not gone.issuperset(cache.episodes)]
        self._behind = [cache for cache in self._behind if not gone.issuperset(cache.episodes)]

    def clear(self) -> None:
        self._ahead, self._behind = [], []
