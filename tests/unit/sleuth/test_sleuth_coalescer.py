"""What concurrent callers ask becomes few calls, and each gets what is its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from sleuth.coalescer import Asked, Coalescer, SharedSearch
from sleuth.errors import ConfigError, RetrieverError
from sleuth.types import Hit, Passage


class Held:
    """A batch function that keeps what it is called with and, while ``gate`` is shut, does not come back."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.gate = threading.Event()

    def __call__(self, items):
        self.calls.append(list(items))
        assert self.gate.wait(10)
        if -1 in items:
            raise ConfigError("one of them")
        if -2 in items:
            raise KeyError("all of them")
        return [ValueError("its own") if item == -3 else 2 * item for item in items]


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def answer(coalescer, item):
    try:
        return coalescer.ask(item)
    except Exception as error:  # noqa: BLE001 - it is the outcome
        return type(error)


def by_threads(coalescer, held, first, rest):
    """The outcomes of ``rest``, which are asked for in this order while the call for ``first`` runs."""
    with ThreadPoolExecutor(len(rest) + 1) as pool:
        asked = [pool.submit(answer, coalescer, first)]
        wait_for(lambda: len(held.calls) == 1)
        for number, item in enumerate(rest, start=1):
            asked.append(pool.submit(answer, coalescer, item))
            wait_for(lambda: len(coalescer._waiting) == number)  # noqa: B023 - called at once
        held.gate.set()
        return [one.result(10) for one in asked[1:]]


def by_tasks(coalescer, held, first, rest):
    """The same on an event loop."""

    async def one(item):
        try:
            return await coalescer.ask_async(item)
        except Exception as error:  # noqa: BLE001 - it is the outcome
            return type(error)

    async def together():
        opening = asyncio.create_task(one(first))
        await asyncio.to_thread(wait_for, lambda: len(held.calls) == 1)
        asked = [asyncio.create_task(one(item)) for item in rest]
        await asyncio.sleep(0)
        held.gate.set()
        await opening
        return await asyncio.gather(*asked)

    return asyncio.run(together())


@pytest.fixture(params=[by_threads, by_tasks])
def ask_all(request):
    return request.param


def test_what_is_asked_during_a_call_goes_out_in_the_next(ask_all):
    held = Held()
    assert ask_all(Coalescer(held), held, 0, [1, 2, 3]) == [2, 4, 6]
    assert held.calls == [[0], [1, 2, 3]]


def test_a_call_holds_no_more_than_fits_and_only_what_fits_together(ask_all):
    held = Held()
    coalescer = Coalescer(held, key=lambda item: item % 2, size=abs, max_size=6)
    assert ask_all(coalescer, held, 0, [2, 1, 4, 3, 2, 20]) == [4, 2, 8, 6, 4, 40]
    assert held.calls == [[0], [2, 4], [1, 3], [2], [20]]
    assert coalescer.pending == 0


@pytest.mark.parametrize(("item", "error"), [(-1, ConfigError), (-2, KeyError)])
def test_an_error_of_the_call_is_everyones(ask_all, item, error):
    held = Held()
    assert ask_all(Coalescer(held), held, 0, [1, item, 3]) == [error] * 3
    assert held.calls == [[0], [1, item, 3]]


def test_an_outcome_that_is_an_error_is_its_callers(ask_all):
    held = Held()
    assert ask_all(Coalescer(held), held, 0, [1, -3, 3]) == [2, ValueError, 6]


def test_a_fault_of_one_item_harms_no_other(ask_all):
    held = Held()
    assert ask_all(Coalescer(held, one_fault=(ConfigError,)), held, 0, [1, -1, 3]) == [2, ConfigError, 6]
    assert held.calls[1:] == [[1, -1, 3], [1], [-1], [3]]


def test_too_few_outcomes_are_an_error_not_a_caller_who_waits_for_ever():
    with pytest.raises(ValueError, match="0 outcomes were returned for 1 items"):
        Coalescer(lambda items: []).ask(1)


def test_a_call_may_ask_too():
    def halved(items):
        return [coalescer.ask(item // 2) + 1 if item else 0 for item in items]

    coalescer = Coalescer(halved)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(coalescer.ask, 8).result(10) == 4


def test_tasks_that_are_ready_at_once_share_the_first_call():
    held = Held()
    held.gate.set()
    coalescer = Coalescer(held)

    async def together():
        return await asyncio.gather(*map(coalescer.ask_async, range(3)))

    for _ in range(2):  # it outlives an event loop
        assert asyncio.run(together()) == [0, 2, 4]
    assert held.calls == [[0, 1, 2]] * 2


def test_who_has_gone_is_not_called_for():
    held = Held()
    coalescer = Coalescer(held)

    async def impatient():
        first = asyncio.create_task(coalescer.ask_async(0))
        await asyncio.to_thread(wait_for, lambda: len(held.calls) == 1)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await coalescer.ask_async(1)
        last = asyncio.create_task(coalescer.ask_async(2))
        await asyncio.sleep(0)
        assert coalescer.pending == 2
        held.gate.set()
        return await first, await last

    assert asyncio.run(impatient()) == (0, 4)
    assert held.calls == [[0], [2]]


@pytest.mark.parametrize("error", [RetrieverError("stopping"), None])
def test_who_waits_when_it_closes_is_told(error):
    held = Held()
    coalescer = Coalescer(held)

    async def closing():
        first = asyncio.create_task(coalescer.ask_async(0))
        await asyncio.to_thread(wait_for, lambda: len(held.calls) == 1)
        second = asyncio.create_task(coalescer.ask_async(1))
        await asyncio.sleep(0)
        coalescer.close(error)
        held.gate.set()
        return await asyncio.gather(first, second, return_exceptions=True)

    answered, told = asyncio.run(closing())
    assert answered == 0
    assert told is error if error else isinstance(told, asyncio.CancelledError)
    with pytest.raises(RuntimeError, match="closed"):
        coalescer.ask(2)


class Index:
    fingerprint = "index"

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], int]] = []

    def search(self, queries, k):
        self.calls.append((list(queries), k))
        return [[Hit(Passage(query, query, "text"), 1.0, rank + 1) for rank in range(k)] for query in queries]


def test_a_shared_search_asks_each_query_once_and_no_more_than_allowed_at_a_time():
    index, seen = Index(), []
    searches = SharedSearch(index, lambda queries, seconds: seen.append((queries, seconds >= 0)), max_batch=2)
    found = searches.ask(Asked(["a", "b", "a", "c"], 2))
    assert [[hit.passage.id for hit in hits] for hits in found] == [["a", "a"], ["b", "b"], ["a", "a"], ["c", "c"]]
    assert index.calls == [(["a", "b"], 2), (["c"], 2)]
    assert seen == [(2, True), (1, True)]
    assert searches.ask(Asked([], 2)) == []


def test_a_larger_request_waits_for_others_between_its_calls_and_counts_as_pending_until_then():
    index, gate, seen = Index(), threading.Event(), []

    def held(queries, k, search=index.search):
        seen.append(searches.pending)
        assert gate.wait(10)
        return search(queries, k)

    index.search = held
    searches = SharedSearch(index, lambda *_: None, max_batch=2)
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(searches.ask, Asked(["a", "b", "c", "d", "e", "a"], 1))
        wait_for(lambda: seen)
        small = pool.submit(searches.ask, Asked(["x"], 1))
        wait_for(lambda: searches.pending == 4)
        gate.set()
        assert [len(hits) for hits in large.result(10)] == [1] * 6
        assert small.result(10)[0][0].passage.id == "x"
    assert seen[0] == 3
    assert [queries for queries, _ in index.calls[:2]] == [["a", "b"], ["x"]]
    assert sorted(query for queries, _ in index.calls for query in queries) == ["a", "b", "c", "d", "e", "x"]
    assert max(len(queries) for queries, _ in index.calls) == 2
    assert searches.pending == 0


def test_a_larger_request_that_fails_leaves_nothing_pending():
    class Broken(Index):
        def search(self, queries, k):
            raise RetrieverError("down")

    searches = SharedSearch(Broken(), lambda *_: None, max_batch=2)
    for _ in range(2):
        with pytest.raises(RetrieverError, match="down"):
            searches.ask(Asked(["a", "b", "c"], 1))
        with pytest.raises(RetrieverError, match="down"):
            asyncio.run(searches.ask_async(Asked(["a", "b", "c", "d", "e"], 1)))
        assert searches.pending == 0
