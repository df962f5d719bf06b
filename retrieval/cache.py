"""Caches the hits of queries, within a call and across calls."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.documents import documents_of
from retrieval.size import size_of
from sleuth.errors import ConfigError
from sleuth.protocols import Documents, Retriever
from sleuth.types import Hit

_Key = tuple[str, int, str]


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Cache hits, cache misses, and entries held."""

    hits: int
    misses: int
    entries: int


class CachedRetriever:
    """An LRU cache of ``size`` answers in front of another retriever; each distinct query is passed on once.

    The key is the inner retriever's fingerprint, ``k`` and the query. Failures are not cached.
    """

    def __init__(self, inner: Retriever, *, size: int = 10_000) -> None:
        if size < 1:
            raise ConfigError(f"the retriever's cache has size {size}, it must be 1 or more")
        self._inner = inner
        self._size = size
        self._entries: OrderedDict[_Key, tuple[Hit, ...]] = OrderedDict()
        self._hits = 0
        self._misses = 0
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        return self._inner.fingerprint

    @property
    def passages(self) -> int | None:
        """Passages searched; None if the inner retriever does not say."""
        return size_of(self._inner)

    @property
    def documents(self) -> Documents | None:
        """Reads whole documents; None if the inner retriever cannot."""
        return documents_of(self._inner)

    @property
    def statistics(self) -> CacheStatistics:
        with self._lock:
            return CacheStatistics(self._hits, self._misses, len(self._entries))

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """Like the inner retriever, which gets only the queries not yet cached, each once."""
        fingerprint = self.fingerprint
        keys = [(fingerprint, k, query) for query in queries]
        answers = self._look_up(keys)
        missing = [key for key in dict.fromkeys(keys) if key not in answers]
        if missing:
            found = self._inner.search([query for _, _, query in missing], k)
            fresh = {key: tuple(hits) for key, hits in zip(missing, found, strict=True)}
            self._keep(fresh)
            answers |= fresh
        with self._lock:
            self._misses += len(missing)
            self._hits += len(keys) - len(missing)
        return [list(answers[key]) for key in keys]

    def _look_up(self, keys: Sequence[_Key]) -> dict[_Key, tuple[Hit, ...]]:
        with self._lock:
            known = {key: self._entries[key] for key in keys if key in self._entries}
            for key in known:
                self._entries.move_to_end(key)
            return known

    def _keep(self, fresh: dict[_Key, tuple[Hit, ...]]) -> None:
        with self._lock:
            self._entries |= fresh
            while len(self._entries) > self._size:
                self._entries.popitem(last=False)
