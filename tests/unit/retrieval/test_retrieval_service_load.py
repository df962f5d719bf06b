"""The service under large requests: batches, turns, limits of time."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from echo import Echo, ask, metrics, wait_for

from retrieval.cache import CachedRetriever
from retrieval.resilient import ResilientRetriever
from retrieval.service.config import ServiceLimits
from sleuth.types import Hit

Serving = Callable[..., contextlib.AbstractContextManager[str]]


def test_what_search_r1s_client_sends_for_512_questions_five_times_passes_while_others_wait(serving: Serving) -> None:
    echo = Echo()
    with serving(echo) as url, ThreadPoolExecutor(6) as pool:
        echo.gate.clear()
        waiting = [pool.submit(ask, url, queries=[f"{i} {j}" for j in range(2_560)], topk=3) for i in range(5)]
        wait_for(lambda: "pending_queries 12544.0" in metrics(url))  # all but those of the running call
        last = pool.submit(ask, url, queries=[f"last {j}" for j in range(2_560)], topk=3)
        wait_for(lambda: "pending_queries 15104.0" in metrics(url))
        echo.gate.set()
        assert {answer.result().status_code for answer in waiting} == {200}
        found = last.result().json()["result"]
    assert [hits[2]["id"] for hits in found] == [f"last {j}-3" for j in range(2_560)]
    assert max(len(queries) for queries, _ in echo.calls) == 256


def test_others_take_turns_with_the_calls_of_a_large_request(serving: Serving) -> None:
    """Also through the wrappers of a retriever that is opened to be served."""
    echo = Echo()
    wrapped = CachedRetriever(ResilientRetriever(echo))
    with serving(wrapped, ServiceLimits(max_batch=8)) as url, ThreadPoolExecutor(2) as pool:
        echo.gate.clear()
        large = pool.submit(ask, url, queries=[f"q{i % 100}" for i in range(110)], topk=1)
        wait_for(lambda: echo.calls)
        small = pool.submit(ask, url, queries=["small"], topk=1)
        wait_for(lambda: "pending_queries 93.0" in metrics(url))
        echo.gate.set()
        assert small.result().json()["result"][0][0]["id"] == "small-1"
        assert [hits[0]["id"] for hits in large.result().json()["result"]] == [f"q{i % 100}-1" for i in range(110)]
    sizes = [len(queries) for queries, _ in echo.calls]
    assert (max(sizes), sum(sizes)) == (8, 101)
    assert [queries for queries, _ in echo.calls].index(["small"]) == 1


def test_a_large_request_has_time_for_each_of_its_calls(serving: Serving) -> None:
    class Slow(Echo):
        def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
            time.sleep(0.1)
            return super().search(queries, k)

    with serving(Slow(), ServiceLimits(max_batch=1, timeout_s=0.4)) as url:
        assert ask(url, queries=list("abcdefgh"), topk=1).status_code == 200


def test_a_search_longer_than_the_headers_may_take_is_not_ended(serving: Serving) -> None:
    echo = Echo()
    echo.gate.clear()
    with serving(echo, ServiceLimits(header_timeout_s=0.2)) as url, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, url, queries=["x"], topk=1)
        wait_for(lambda: echo.calls)
        time.sleep(0.4)
        echo.gate.set()
        assert answer.result().status_code == 200


def test_a_large_answer_is_written_off_the_event_loop_and_reads_the_same(serving: Serving) -> None:
    with serving(Echo(passages=1_000)) as address:
        queries = ["x", "", "ü"]
        result = ask(address, queries=queries, topk=400, return_scores=True).json()["result"]
        assert [len(hits) for hits in result] == [400, 0, 400]
        assert result[2][399]["document"]["id"] == "ü-400"
        assert ask(address, queries=["x"], topk=400).json()["result"] == [[hit["document"] for hit in result[0]]]
