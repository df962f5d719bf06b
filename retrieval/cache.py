"""Caches the hits of queries, within a call and across calls, in bounded memory."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from retrieval.documents import documents_of
from retrieval.size import size_of
from sleuth.errors import ConfigError
from sleuth.pictures import search_images, takes_images
from sleuth.protocols import Documents, Retriever
from sleuth.query_forms import QueryForm, form_of
from sleuth.types import Hit, Image, Passage

_Key = tuple[str, int, str]

_PASSAGE = Passage("", "", "")
_HIT_BYTES = sys.getsizeof(Hit(_PASSAGE, 0.5, 1)) + sys.getsizeof(_PASSAGE) + sys.getsizeof(0.5) + sys.getsizeof(1)
"""Of a hit without its texts; ranks above 256 are objects of their own."""
_ENTRY_BYTES = 250
"""Of an answer without its query and hits: key, sizes, places in the tables."""


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Cache hits, cache misses, entries held, and their memory in bytes."""

    hits: int
    misses: int
    entries: int
    bytes: int


class CachedRetriever:
    """An LRU cache of ``size`` answers in front of another retriever; each distinct query is passed on once.

    The key is the inner retriever's fingerprint, ``k`` and the query. Failures are not cached. ``max_bytes`` bounds the
    memory of the answers (see `answer_bytes`), 0 keeps none, None does not bound it; one that is larger is not kept.
    """

    def __init__(self, inner: Retriever, *, size: int = 10_000, max_bytes: int | None = None) -> None:
        if size < 1:
            raise ConfigError(f"the retriever's cache has size {size}, it must be 1 or more")
        self._inner = inner
        self._size = size
        self._max_bytes = float("inf") if max_bytes is None else max_bytes
        self._entries: OrderedDict[_Key, tuple[tuple[Hit, ...], int]] = OrderedDict()
        self._bytes = 0
        self._hits = 0
        self._misses = 0
        self._lock = threading.Lock()

    @property
    def fingerprint(self) -> str:
        return self._inner.fingerprint

    @property
    def query_form(self) -> QueryForm:
        """The inner retriever's."""
        return form_of(self._inner)

    @property
    def takes_images(self) -> bool:
        """Whether the inner retriever takes pictures as queries."""
        return takes_images(self._inner)

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
            return CacheStatistics(self._hits, self._misses, len(self._entries), self._bytes)

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

    def search_images(self, images: Sequence[Image], k: int) -> list[list[Hit]]:
        """Like the inner retriever; the answers to pictures are not kept."""
        return search_images(self._inner, images, k)

    def _look_up(self, keys: Sequence[_Key]) -> dict[_Key, tuple[Hit, ...]]:
        with self._lock:
            known = {key: self._entries[key][0] for key in keys if key in self._entries}
            for key in known:
                self._entries.move_to_end(key)
            return known

    def _keep(self, fresh: dict[_Key, tuple[Hit, ...]]) -> None:
        sizes = {key: answer_bytes(key[2], hits) for key, hits in fresh.items()}
        with self._lock:
            for key, hits in fresh.items():
                if sizes[key] > self._max_bytes:
                    continue
                self._bytes += sizes[key] - self._entries.get(key, ((), 0))[1]
                self._entries[key] = hits, sizes[key]
                self._entries.move_to_end(key)
                while len(self._entries) > self._size or self._bytes > self._max_bytes:
                    self._bytes -= self._entries.popitem(last=False)[1][1]


def answer_bytes(query: str, hits: tuple[Hit, ...]) -> int:
    """Memory of a cached answer in bytes, its passages included: no two answers of an index share theirs."""
    total = _ENTRY_BYTES + sys.getsizeof(query) + sys.getsizeof(hits)
    for hit in hits:
        passage = hit.passage
        total += _HIT_BYTES + sys.getsizeof(passage.id) + sys.getsizeof(passage.title) + sys.getsizeof(passage.text)
        if passage.image is not None:
            total += _image_bytes(passage.image)
    return total


def _image_bytes(image: Image) -> int:
    """Of a picture with the bytes that it holds, if any: most name a place in a file."""
    return sum(map(sys.getsizeof, (image, image.name, image.sha256, image.content)))
