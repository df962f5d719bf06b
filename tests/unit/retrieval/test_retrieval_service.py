"""The service over real HTTP: Search-R1's contract, batching, limits and failures."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import requests
from echo import Echo, ask, metrics, wait_for
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from retrieval.service.config import ServiceLimits
from retrieval.service.protocol import timed_protocol
from retrieval.service.request import RetrieveAnswer
from retrieval.service.wire import FINGERPRINT

Serving = Callable[..., contextlib.AbstractContextManager[str]]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def url(echo: Echo, serving: Serving) -> Iterator[str]:
    limits = ServiceLimits(
        max_batch=8,
        max_queries=4,
        max_query_characters=50,
        max_topk=50,
        max_hits=100,
        max_body_bytes=2_000,
        timeout_s=2,
        body_timeout_s=0.5,
        max_pending=6,
    )
    with serving(echo, limits) as address:
        yield address
        echo.gate.set()


def test_answers_with_scores(url: str) -> None:
    answer = ask(url, queries=["x", "", "y"], topk=2, return_scores=True)
    assert answer.headers[FINGERPRINT] == "echo"
    first, empty, third = answer.json()["result"]
    assert first[0] == {
        "document": {"id": "x-1", "contents": '"A "x""\nline\n1', "title": 'A "x"', "text": "line\n1"},
        "score": 1.0,
    }
    assert (len(first), empty, third[1]["score"]) == (2, [], 0.5)


def test_answers_without_scores_are_the_documents(url: str) -> None:
    for body in ({"return_scores": False}, {}):
        result = ask(url, queries=["x"], topk=1, **body).json()["result"]
        assert [document["id"] for document in result[0]] == ["x-1"]


def test_topk_has_a_default_and_keys_of_other_clients_are_left_alone(url: str, echo: Echo) -> None:
    answer = ask(url, queries=["x"], return_scores=None, dataset="nq")
    assert len(answer.json()["result"][0]) == 3
    assert ask(url, queries=[]).json() == {"result": []}
    assert len(echo.calls) == 1


@pytest.mark.parametrize(("topk", "hits"), [(0, 3), ("3", 3), (3.0, 3), (" 2 ", 2), ("0", 3), (None, 3)])
def test_topk_is_read_as_search_r1s_server_reads_it(url: str, topk: Any, hits: int) -> None:
    (found,) = ask(url, queries=["x"], topk=topk).json()["result"]
    assert [document["id"] for document in found] == [f"x-{rank}" for rank in range(1, hits + 1)]


@pytest.mark.parametrize(("value", "scored"), [("yes", True), (1, True), ("true", True), ("0", False), (0, False)])
def test_return_scores_is_read_as_search_r1s_server_reads_it(url: str, value: Any, scored: bool) -> None:
    ((hit,),) = ask(url, queries=["x"], topk=1, return_scores=value).json()["result"]
    assert ("score" in hit) == scored


def test_the_request_path_of_search_r1s_client(url: str) -> None:
    """What its generation loop does with a batch of queries, in our words."""
    payload = {"queries": ["x", "y"], "topk": 3, "return_scores": True}
    results = requests.post(f"{url}/retrieve", json=payload, timeout=20).json()["result"]
    blocks = []
    for found in results:
        lines = ""
        for place, item in enumerate(found):
            contents = item["document"]["contents"]
            title = contents.split("\n")[0]
            text = "\n".join(contents.split("\n")[1:])
            lines += f"Doc {place + 1}(Title: {title}) {text}\n"
        blocks.append(lines)
    assert blocks[0].startswith('Doc 1(Title: "A "x"") line\n1\nDoc 2(')
    assert len(blocks) == 2


def test_concurrent_requests_share_a_call_and_each_gets_its_own(url: str, echo: Echo) -> None:
    echo.gate.clear()
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(ask, url, queries=["first"], topk=1)
        wait_for(lambda: echo.calls)
        rest = [pool.submit(ask, url, queries=[f"q{i % 2}", f"r{i}"][: 1 + i % 2], topk=1) for i in range(3)]
        other = pool.submit(ask, url, queries=["other"], topk=2)
        wait_for(lambda: "pending_queries 5.0" in metrics(url))
        echo.gate.set()
        assert first.result().json()["result"][0][0]["id"] == "first-1"
        for i, answer in enumerate(rest):
            got = [hits[0]["id"] for hits in answer.result().json()["result"]]
            assert got == [f"q{i % 2}-1", f"r{i}-1"][: 1 + i % 2]
        assert len(other.result().json()["result"][0]) == 2
    assert echo.calls[0] == (["first"], 1)
    together = next(queries for queries, k in echo.calls[1:] if k == 1)
    assert sorted(together) == ["q0", "q1", "r1"]
    assert (["other"], 2) in echo.calls
    assert len(echo.calls) == 3


def test_what_one_asks_in_error_harms_no_other_in_its_batch(url: str, echo: Echo) -> None:
    echo.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        pool.submit(ask, url, queries=["first"], topk=1)
        wait_for(lambda: echo.calls)
        answers = {name: pool.submit(ask, url, queries=[name], topk=2) for name in ("a", "wrong", "b")}
        wait_for(lambda: "pending_queries 3.0" in metrics(url))
        echo.gate.set()
        statuses = {name: answer.result().status_code for name, answer in answers.items()}
    assert statuses == {"a": 200, "wrong": 422, "b": 200}
    assert "no such query" in answers["wrong"].result().json()["detail"]
    assert sorted(echo.calls[1][0]) == ["a", "b", "wrong"]


def test_failures_have_their_status(url: str) -> None:
    down = ask(url, queries=["down"], topk=1)
    assert (down.status_code, down.json(), down.headers["retry-after"]) == (503, {"detail": "the index is gone"}, "1")
    bug = ask(url, queries=["bug"], topk=1)
    assert (bug.status_code, bug.json()["detail"]) == (500, "KeyError in the service")
    assert ask(url, queries=["x"], topk=1).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"{", 422, "not JSON"),
        (b"[]", 422, "not an object"),
        (b'{"topk": 3}', 422, "queries is not a list"),
        (b'{"queries": "x"}', 422, "queries is not a list"),
        (b'{"queries": [1]}', 422, "queries is not a list"),
        (b'{"queries": ["1", "2", "3", "4", "5"]}', 422, "5 queries are more than 4"),
        (b'{"queries": ["' + b"x" * 51 + b'"]}', 422, "a query of 51 characters is longer than 50"),
        (b'{"queries": ["x"], "topk": 51}', 422, "topk is 51"),
        (b'{"queries": ["a", "b", "c"], "topk": 40}', 422, "3 queries with topk 40 are 120 hits, more than 100"),
        (b'{"queries": ["x"], "topk": -1}', 422, "topk is -1, it must be a whole number from 1 to 50"),
        (b'{"queries": ["x"], "topk": true}', 422, "topk is True"),
        (b'{"queries": ["x"], "topk": 3.5}', 422, "topk is 3.5"),
        (b'{"queries": ["x"], "topk": "x"}', 422, "topk is 'x'"),
        (b'{"queries": ["x"], "topk": NaN}', 422, "topk is nan"),
        (b'{"queries": ["x"], "topk": [3]}', 422, "topk is [3]"),
        (b'{"queries": ["x"], "return_scores": "maybe"}', 422, "return_scores is 'maybe'"),
        (b'{"queries": ["x"], "return_images": 2}', 422, "return_images is 2"),
        (b'{"queries": ["' + b"x" * 2_000 + b'"]}', 413, "larger than 2000 bytes"),
        (b"[" * 1_900, 422, "not JSON"),
    ],
)
def test_requests_beyond_the_limits_are_refused(url: str, body: bytes, status: int, detail: str) -> None:
    answer = httpx.post(f"{url}/retrieve", content=body, timeout=20)
    assert answer.status_code == status
    assert detail in answer.json()["detail"]


def test_more_hits_than_passages_are_all_passages(url: str) -> None:
    assert len(ask(url, queries=["x"], topk=11).json()["result"][0]) == 10


def test_a_body_that_does_not_say_its_size_is_limited_too(url: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 100

    answer = httpx.post(f"{url}/retrieve", content=chunks(), timeout=20)
    assert answer.status_code == 413


def test_only_a_post_asks(url: str) -> None:
    answer = httpx.get(f"{url}/retrieve")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert httpx.post(f"{url}/retrieved", json={"queries": []}).status_code == 404


def test_a_client_that_dawdles_is_sent_away(url: str) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("plain", [HttpToolsProtocol, H11Protocol])
def test_a_request_whose_headers_do_not_come_is_ended_in_time(
    echo: Echo, serving: Serving, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retrieval.service.server.timed_protocol", lambda seconds: timed_protocol(seconds, plain))
    good = b"POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-length: 30\r\n\r\n" + b'{"queries": ["x"], "topk": 1}\n'
    with serving(echo, ServiceLimits(header_timeout_s=2)) as url, contextlib.ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        silent, half, later, slow, idle = (
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(5)
        )
        started = time.monotonic()
        half.sendall(good[:30])
        for connection in (later, idle):
            connection.sendall(good)
            assert connection.recv(4_096).startswith(b"HTTP/1.1 200")
        later.sendall(good[:30])  # on a connection that has had an answer
        slow.sendall(good[:30])
        time.sleep(0.1)
        slow.sendall(good[30:])
        assert slow.recv(4_096).startswith(b"HTTP/1.1 200")
        for connection in (half, later):
            assert connection.recv(4_096).startswith(b"HTTP/1.1 408")
            assert connection.recv(4_096) == b""
        assert silent.recv(4_096) == b""
        assert time.monotonic() - started >= 2
        for connection in (idle, slow):  # between requests
            connection.sendall(good)
            assert connection.recv(4_096).startswith(b"HTTP/1.1 200")


def test_the_documentation_describes_what_is_asked_and_answered(url: str) -> None:
    described = httpx.get(f"{url}/openapi.json", timeout=20).json()
    assert set(described["paths"]) == {"/retrieve", "/health", "/metrics"}
    retrieve = described["paths"]["/retrieve"]["post"]
    content = retrieve["requestBody"]["content"]["application/json"]
    assert set(content["schema"]["properties"]) == {"queries", "topk", "return_scores", "return_images"}
    assert content["schema"]["required"] == ["queries"]
    assert set(retrieve["responses"]) == {"200", "408", "413", "422", "503", "504"}
    assert retrieve["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/RetrieveAnswer")
    assert httpx.get(f"{url}/docs", timeout=20).status_code == 200
    for body in (content["example"], {"queries": ["x", ""], "topk": 2}):
        answer = ask(url, **body)
        assert RetrieveAnswer.model_validate(answer.json()).model_dump(exclude_unset=True) == answer.json()


def test_a_client_that_hangs_up_is_no_error_of_the_service(url: str, caplog: pytest.LogCaptureFixture) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(b"POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    wait_for(lambda: 'sleuth_requests_total{status="499"} 1.0' in metrics(url))
    assert 'status="500"' not in metrics(url)
    assert caplog.records == []


def test_who_waits_too_long_is_told_and_is_not_searched_for(url: str, echo: Echo) -> None:
    echo.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(ask, url, queries=[f"q{i}"], topk=1) for i in range(2)]
        assert {answer.result().status_code for answer in answers} == {504}
    echo.gate.set()
    assert ask(url, queries=["x"], topk=1).status_code == 200
    assert [queries for queries, _ in echo.calls][1:] == [["x"]]


def test_when_too_many_wait_the_next_is_told_to_come_back(url: str, echo: Echo) -> None:
    echo.gate.clear()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(ask, url, queries=["first"], topk=1)
        wait_for(lambda: echo.calls)
        waiting = pool.submit(ask, url, queries=["a", "b", "c", "d"], topk=1)
        wait_for(lambda: "pending_queries 4.0" in metrics(url))
        refused = ask(url, queries=["e", "f", "g"], topk=1)
        assert refused.status_code == 503
        assert "4 queries are already waiting" in refused.json()["detail"]
        echo.gate.set()
        assert first.result().status_code == waiting.result().status_code == 200


def test_health_and_metrics(url: str) -> None:
    ask(url, queries=["x", "y"], topk=1)
    ask(url, queries=["down"], topk=1)
    health = httpx.get(f"{url}/health").json()
    assert health.items() >= {"status": "ok", "fingerprint": "echo", "passages": 10, "max_queries": 4}.items()
    assert health.items() >= {"max_hits": 100, "max_topk": 50, "max_body_bytes": 2_000, "timeout_s": 2}.items()
    text = metrics(url)
    for line in (
        'sleuth_requests_total{status="200"} 1.0',
        'sleuth_requests_total{status="503"} 1.0',
        "sleuth_queries_total 3.0",
        "sleuth_pending_queries 0.0",
        "sleuth_search_seconds_count 2.0",
        'sleuth_batch_queries_bucket{le="2.0"} 2.0',
    ):
        assert line in text.splitlines()
