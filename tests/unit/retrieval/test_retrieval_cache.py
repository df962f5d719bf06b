from __future__ import annotations

import sys
import threading
import tracemalloc
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.cache import CachedRetriever
from retrieval.config import RetrieverSettings
from retrieval.open import remembering
from sleuth.errors import ConfigError, RetrieverError
from sleuth.settings import validate
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
    statistics = cached.statistics
    assert (statistics.hits, statistics.misses, statistics.entries) == (2, 3, 3)


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


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), max_size=9), max_size=9),
    st.integers(1, 4),
    st.sampled_from([None, 0, 1_000, 2_500]),
)
def test_the_cache_changes_nothing_but_the_work(calls: list[list[str]], size: int, max_bytes: int | None) -> None:
    inner, plain = Echo(), Echo()
    cached = CachedRetriever(inner, size=size, max_bytes=max_bytes)
    for queries in calls:
        assert cached.search(queries, 2) == plain.search(queries, 2)
    statistics = cached.statistics
    assert statistics.hits + statistics.misses == sum(map(len, calls))
    assert statistics.misses == sum(len(queries) for queries, _ in inner.asked)
    assert statistics.entries <= size
    assert statistics.bytes <= (sys.maxsize if max_bytes is None else max_bytes)
    assert (statistics.bytes == 0) == (statistics.entries == 0)


class Library(Echo):
    """Answers with passages that are made anew for each hit, as an index reads them from its file."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [
            [
                Hit(Passage(f"{query} {rank}", f"Title {rank}", self.words * (3 + rank % 11) + query), 1 / rank, rank)
                for rank in range(1, k + 1)
            ]
            for query in queries
        ]


@pytest.mark.parametrize("words", ["some words of a passage ", "パッセージの言葉です", ""])
@pytest.mark.parametrize(("queries", "k"), [(20, 400), (2_000, 3)])
def test_the_memory_that_it_counts_is_what_it_takes(words: str, queries: int, k: int) -> None:
    cached = CachedRetriever(Library(words))
    cached.search(["warm"], 1)
    tracemalloc.start()
    try:
        for start in range(0, queries, 10):
            cached.search([f"query {number}" for number in range(start, start + 10)], k)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken / 1.5 <= cached.statistics.bytes <= 1.5 * taken


def test_memory_is_bounded_whatever_is_asked_for() -> None:
    """Without a bound these 60 answers take 100 MB and more."""
    bound = 5_000_000
    cached = CachedRetriever(Library("some words of a passage " * 10), max_bytes=bound)
    tracemalloc.start()
    try:
        for number in range(60):
            cached.search([f"query {number}"], 1_000)
        taken, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.5 * bound < cached.statistics.bytes <= bound
    assert taken < 1.5 * bound
    assert peak < 3 * bound


def test_an_answer_larger_than_the_bound_is_not_kept_and_drives_no_other_out() -> None:
    cached = CachedRetriever(Library("words "), max_bytes=20_000)
    cached.search(["a", "b"], 3)
    assert len(cached.search(["c"], 500)[0]) == 500
    assert cached.statistics.entries == 2


def test_the_bound_is_a_setting_and_configs_with_a_number_of_queries_still_load() -> None:
    def settings(**values: object) -> RetrieverSettings:
        return validate(RetrieverSettings, {"kind": "remote", "url": "http://127.0.0.1:1", **values}, "run.yaml")

    assert (settings().cache, settings().cache_bytes) == (10_000, 256 * 2**20)
    assert (settings(cache=500).cache, settings(cache=500).cache_bytes) == (500, 256 * 2**20)
    assert settings(cache_bytes="64MB").cache_bytes == 64_000_000
    assert settings(cache_bytes=None).cache_bytes is None
    for wrong in ("64 somethings", -1, True):
        with pytest.raises(ConfigError, match=r"cache_bytes: write a size such as 8GiB, a number of bytes, 0, or null"):
            settings(cache_bytes=wrong)
    inner = Echo()
    for nothing in ({"cache": 0}, {"cache_bytes": 0}):
        assert remembering(inner, settings(**nothing)) is inner
    cached = remembering(inner, settings(cache=2, cache_bytes="1MiB"))
    cached.search(["a", "b", "c"], 1)
    assert isinstance(cached, CachedRetriever)
    assert cached.statistics.entries == 2


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
