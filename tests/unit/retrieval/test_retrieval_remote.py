"""The client: what it makes of our service, of Search-R1's own, and of servers that misbehave."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from retrieval.bm25 import BM25Retriever
from retrieval.combine.hybrid import HybridRetriever
from retrieval.config import RetrieverSettings
from retrieval.open import open_retriever
from retrieval.resilient import ResilientRetriever
from retrieval.service.remote import RemoteRetriever
from retrieval.service.wire import read_answer
from sleuth.errors import ConfigError, RetrieverError
from sleuth.types import Passage

Serving = Callable[..., contextlib.AbstractContextManager[str]]


class Server:
    """An ASGI application that answers /retrieve as told: (status, content, headers), one after another."""

    def __init__(self, *answers: Any, health: Any = None) -> None:
        self.answers = list(answers)
        self.health = health
        self.asked: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while (message := await receive()) and message["type"] == "http.request":
            body += message["body"]
            if not message.get("more_body"):
                break
        if scope["path"] == "/health":
            status, content = (404, {"detail": "Not Found"}) if self.health is None else (200, self.health)
        else:
            self.asked.append(json.loads(body))
            status, content = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": raw})


@pytest.fixture
def served(serving: Serving) -> Iterator[Callable[[Server], str]]:
    with contextlib.ExitStack() as stack:
        yield lambda server: stack.enter_context(serving(None, app=server))


def hit(score: Any = 1.0, **document: Any) -> dict[str, Any]:
    return {"document": document, "score": score}


def test_search_r1s_own_server_row_of_its_corpus(served: Callable[[Server], str]) -> None:
    server = Server(
        (200, {"result": [[hit(0.9, id="7", contents='"A "Town""\nline\ntwo'), hit(0.8, id=8, contents="bare")]]})
    )
    retriever = RemoteRetriever(served(server))
    (hits,) = retriever.search(["where?"], 2)
    assert [h.passage for h in hits] == [Passage("7", 'A "Town"', "line\ntwo"), Passage("8", "", "bare")]
    assert [(h.rank, h.score) for h in hits] == [(1, 0.9), (2, 0.8)]
    assert server.asked == [{"queries": ["where?"], "topk": 2, "return_scores": True}]
    assert retriever.passages is None
    assert len(retriever.fingerprint) == 32


def test_its_bm25_which_sends_no_ids_gets_stable_ones(served: Callable[[Server], str]) -> None:
    rows = [hit(title="T", text="one", contents='"T"\none'), hit(title="T", text="two", contents='"T"\ntwo')]
    retriever = RemoteRetriever(served(Server((200, {"result": [rows]}))))
    first, second = (retriever.search(["q"], 2)[0] for _ in range(2))
    assert first == second
    assert first[0].passage.id != first[1].passage.id
    assert first[0].passage.title == "T"


def test_its_search_engines_give_an_order_and_no_scores(served: Callable[[Server], str], index: Path) -> None:
    """Google's and SerpAPI's: contents alone, as many as they like, the same one perhaps twice."""
    pages = ['"No title."\nfirst', '"B"\nsecond', '"No title."\nfirst', '"D"\nfourth']
    server = Server((200, {"result": [[{"document": {"contents": page}} for page in pages]]}))
    retriever = ResilientRetriever(RemoteRetriever(served(server)))
    (hits,) = retriever.search(["q"], 3)
    assert [(h.passage.title, h.passage.text, h.rank, h.score) for h in hits] == [
        ("No title.", "first", 1, 1.0),
        ("B", "second", 2, 0.5),
    ]
    assert hits[0].passage.id == retriever.search(["again"], 1)[0][0].passage.id
    for fusion in ("rrf", "sum"):
        hybrid = HybridRetriever([retriever, Missing()], fusion=fusion)
        assert [h.passage.text for h in hybrid.search(["q"], 3)[0]] == ["first", "second", "fourth"]


class Missing:
    """A part that finds nothing."""

    fingerprint = "missing"

    def search(self, queries: Any, k: int) -> list[list[Any]]:
        return [[] for _ in queries]


def test_its_reranker_sends_contents_alone(served: Callable[[Server], str]) -> None:
    server = Server((200, {"result": [[{"document": '"T"\none', "score": 3.5}]]}))
    ((found,),) = RemoteRetriever(served(server)).search(["q"], 1)
    assert (found.passage.title, found.passage.text, found.score) == ("T", "one", 3.5)


def test_our_service_is_searched_as_the_index_itself(index: Path, serving: Serving) -> None:
    inner = BM25Retriever(index)
    with serving(inner) as url:
        for address in (url, f"{url}/", f"{url}/retrieve"):
            remote = RemoteRetriever(address)
            assert remote.fingerprint == inner.fingerprint
            assert remote.passages == len(inner)
            assert remote.search(["river", "", "town glass"], 3) == inner.search(["river", "", "town glass"], 3)
        hybrid = open_retriever(RetrieverSettings.model_validate({"kind": "hybrid", "parts": [url, str(index)]}))
        assert hybrid.search(["river"], 2)[0][0].passage == inner.search(["river"], 1)[0][0].passage


def test_large_batches_go_in_pieces_the_service_takes(served: Callable[[Server], str]) -> None:
    server = Server(
        (200, {"result": [[], [hit(id="1", contents="a")]]}),
        (200, {"result": [[hit(id="2", contents="b")]]}),
        health={"max_queries": 2},
    )
    found = RemoteRetriever(served(server)).search(["a", "  ", "b", "c"], 1)
    assert [[h.passage.id for h in hits] for hits in found] == [[], [], ["1"], ["2"]]
    assert [asked["queries"] for asked in server.asked] == [["a", "b"], ["c"]]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, b"<html>"), "has no list 'result'"),
        ((200, {"results": []}), "has no list 'result'"),
        ((200, {"result": [3]}), "has no list 'result'"),
        ((200, {"result": []}), "answered 0 of 1 queries"),
        ((200, {"result": [[{"id": "1"}]]}), "a hit without a document"),
        ((200, {"result": [["a"]]}), "a hit without a document"),
        ((200, {"result": [[{"document": {"contents": "b"}}, hit(id="1", contents="a")]]}), "a hit without a score"),
        ((200, {"result": [[hit(None, id="1", contents="a")]]}), "a hit without a score"),
        ((200, b'{"result": [[{"document": {"id": "1", "contents": "a"}, "score": NaN}]]}'), "a hit without a score"),
        ((200, {"result": [[{"document": 3, "score": 1}]]}), "a hit without a document"),
        ((200, {"result": [[hit(id="1")]]}), "a document without contents"),
        ((500, {"detail": "broken"}), "answered 500: broken"),
        ((502, b"bad gateway"), "answered 502: Bad Gateway"),
        ((404, {"detail": "Not Found"}), "answered 404: Not Found"),
    ],
)
def test_answers_that_are_none(served: Callable[[Server], str], answer: Any, message: str) -> None:
    with pytest.raises(RetrieverError, match=message):
        RemoteRetriever(served(Server(answer))).search(["q"], 1)


def test_a_refusal_is_the_callers_mistake_and_is_not_tried_again(served: Callable[[Server], str]) -> None:
    server = Server((422, {"detail": "topk is 5000"}))
    retriever = ResilientRetriever(RemoteRetriever(served(server)), backoff_s=0)
    with pytest.raises(ConfigError, match="refused the request: topk is 5000"):
        retriever.search(["q"], 5000)
    assert len(server.asked) == 1


def test_a_service_that_is_back_is_asked_again(served: Callable[[Server], str]) -> None:
    server = Server((503, {"detail": "busy"}), (200, {"result": [[hit(id="1", contents="a")]]}))
    retriever = ResilientRetriever(RemoteRetriever(served(server)), backoff_s=0)
    assert retriever.search(["q"], 1)[0][0].passage.id == "1"
    assert len(server.asked) == 2


def test_another_index_behind_the_same_address_is_not_searched(index: Path, serving: Serving) -> None:
    class Changing:
        fingerprint = "first"

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                name = self.fingerprint.encode()
                content = json.dumps({"fingerprint": self.fingerprint, "result": [[]]}).encode()
                headers = [(b"x-sleuth-fingerprint", name)]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": content})

    server = Changing()
    with serving(None, app=server) as url:
        retriever = RemoteRetriever(url)
        assert retriever.search(["q"], 1) == [[]]
        server.fingerprint = "second"
        with pytest.raises(RetrieverError, match="now serves another index"):
            retriever.search(["q"], 1)
        assert retriever.fingerprint == "first"


def test_nobody_there_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RetrieverError, match=rf"no retriever service answers at http://127.0.0.1:{port}: .*refused"):
        open_retriever(f"http://127.0.0.1:{port}")


def test_one_that_never_answers_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []
        threading.Thread(target=lambda: held.append(listener.accept()[0]), daemon=True).start()
        with pytest.raises(RetrieverError, match="timed out"):
            RemoteRetriever(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.3)


@pytest.mark.parametrize("url", ["", "ftp://x", "http://", "127.0.0.1:8000", "http://[::1"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ConfigError, match=r"is not (an|the) address"):
        RemoteRetriever(url)


def test_requests_keep_to_the_hits_that_the_service_gives(served: Callable[[Server], str]) -> None:
    server = Server((200, {"result": [[], []]}), health={"max_queries": 64, "max_hits": 5})
    assert RemoteRetriever(served(server)).search(["a", "b", "c", "d"], 2) == [[]] * 4
    assert [request["queries"] for request in server.asked] == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    "image",
    [{"name": "a", "sha256": "b", "data": "?"}, {"name": "a", "sha256": "b", "data": "AAAA"}],
)
def test_a_damaged_picture_of_a_service_is_an_error(image: object) -> None:
    document = {"id": "1", "title": "", "text": "x", "image": image}
    with pytest.raises(RetrieverError, match="image"):
        read_answer({"result": [[{"document": document, "score": 1.0}]]}, 1, 1)


@pytest.mark.parametrize("image", [3, None, "a.png", {"name": "a"}])
def test_another_servers_image_is_no_picture_of_ours(image: object) -> None:
    document = {"id": "1", "contents": "x", "image": image}
    ((hit,),) = read_answer({"result": [[{"document": document, "score": 1.0}]]}, 1, 1)
    assert hit.passage == Passage("1", "", "x")
