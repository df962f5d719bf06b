from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.cache import CachedRetriever, CacheStatistics
from sleuth.errors import ConfigError, RetrieverError
from sleuth.types import Hit, Passage


class Echo:
    """Answers every query with k passages named after it, and remembers what it was asked."""

    def __init__(self) -> None:
        self.fingerprint = "one"
        self.asked: list[tuple[list[str], int]] = []
        self.down = False

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.asked.append((list(queries), k))
        if self.down:
            raise RetrieverError("down")
        return [[Hit(Passage(f"{q}{self.fingerprint}{r}", q, q), 1.0 / r, r) for r in range(1, k + 1)] for q in queries]


def test_each_query_is_passed_on_once() -> None:
    inner = Echo()
    cached = CachedRetriever(inner)
    first = cached.search(["a", "b", "a"], 2)
    again = cached.search(["b", "c"], 2)
    assert inner.asked == [(["a", "b"], 2), (["c"], 2)]
    assert first == inner.search(["a", "b", "a"], 2)
    assert again == inner.search(["b", "c"], 2)
    assert cached.statistics == CacheStatistics(hits=2, misses=3, entries=3)


def test_k_and_index_are_part_of_the_key() -> None:
    inner = Echo()
    cached = CachedRetriever(inner)
    assert [len(cached.search(["a"], k)[0]) for k in (1, 3, 1)] == [1, 3, 1]
    inner.fingerprint = "two"
    assert cached.search(["a"], 1)[0][0].passage.id == "atwo1"
    assert len(inner.asked) == 3


def test_a_caller_cannot_spoil_what_is_kept() -> None:
    cached = CachedRetriever(Echo())
    hits = cached.search(["a", "a"], 2)
    hits[0].clear()
    assert len(hits[1]) == len(cached.search(["a"], 2)[0]) == 2


def test_failures_are_not_kept() -> None:
    inner = Echo()
    cached = CachedRetriever(inner)
    inner.down = True
    with pytest.raises(RetrieverError):
        cached.search(["a"], 1)
    inner.down = False
    assert len(cached.search(["a"], 1)[0]) == 1


def test_the_longest_unused_is_forgotten_first() -> None:
    inner = Echo()
    cached = CachedRetriever(inner, size=2)
    for query in ("a", "b", "a", "c", "a", "b"):
        cached.search([query], 1)
    assert [queries for queries, _ in inner.asked] == [["a"], ["b"], ["c"], ["b"]]
    with pytest.raises(ConfigError, match="size 0"):
        CachedRetriever(inner, size=0)


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=9), max_size=9), st.integers(1, 4))
def test_the_cache_changes_nothing_but_the_work(calls: list[list[str]], size: int) -> None:
    inner, plain = Echo(), Echo()
    cached = CachedRetriever(inner, size=size)
    for queries in calls:
        assert cached.search(queries, 2) == plain.search(queries, 2)
    statistics = cached.statistics
    assert statistics.hits + statistics.misses == sum(map(len, calls))
    assert statistics.misses == sum(len(queries) for queries, _ in inner.asked)
    assert statistics.entries <= size


def test_threads_share_it() -> None:
    cached = CachedRetriever(Echo(), size=5)
    wrong: list[object] = []

    def work(start: int) -> None:
        for i in range(300):
            query = "abcdefgh"[(start + i) % 8]
            if cached.search([query, query], 2)[1][0].passage.title != query:
                wrong.append(query)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert cached.statistics.hits + cached.statistics.misses == 4 * 300 * 2
