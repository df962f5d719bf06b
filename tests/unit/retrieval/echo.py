"""A retriever that names its queries, and how a service over it is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx

from sleuth.errors import ConfigError, RetrieverError
from sleuth.types import Hit, Passage


class Echo:
    """k hits a query that name it; can be held back, and keeps what it was asked."""

    def __init__(self, passages: int = 10) -> None:
        self.fingerprint = "echo"
        self.passages = passages
        self.calls: list[tuple[list[str], int]] = []
        self.gate = threading.Event()
        self.gate.set()

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls.append((list(queries), k))
        assert self.gate.wait(60)
        if "down" in queries:
            raise RetrieverError("the index is gone")
        if "bug" in queries:
            raise KeyError("bug")
        if "wrong" in queries:
            raise ConfigError("no such query")
        if k < 1:
            raise ConfigError(f"k is {k}, it must be 1 or more")
        return [
            [
                Hit(Passage(f"{query}-{rank}", f'A "{query}"', f"line\n{rank}"), 1 / rank, rank)
                for rank in range(1, min(k, self.passages) + 1)
            ]
            if query
            else []
            for query in queries
        ]


def ask(url: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{url}/retrieve", json=body, timeout=60)


def wait_for(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def metrics(url: str) -> str:
    return httpx.get(f"{url}/metrics", timeout=20).text
