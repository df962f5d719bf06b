"""One retriever for all workers of a node: an actor that batches across its callers, and the client they hold."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass, field
from typing import Any

from agent.cluster.identity import check_identity
from agent.cluster.interface import Actor, WorkerLostError
from sleuth.errors import RetrieverError, SleuthError
from sleuth.protocols import Retriever
from sleuth.types import Hit

CALLERS = 64
"""Calls that may wait in a retriever's actor at a time."""


@dataclass(frozen=True, slots=True)
class RetrieverPlan:
    """How an actor opens its index; ``open`` travels to it, so it must be picklable."""

    open: Callable[[], Retriever]
    code: str


@dataclass(slots=True)
class _Waiting:
    queries: Sequence[str]
    k: int
    done: threading.Event = field(default_factory=threading.Event)
    hits: list[list[Hit]] = field(default_factory=list)
    error: BaseException | None = None


class RetrieverServer:
    """Searches for many callers at once: what arrives while one search runs is the next search, in one batch.

    The first caller to find nobody searching does it for all who wait; there is no thread of its own.
    """

    def __init__(self, plan: RetrieverPlan) -> None:
        check_identity(plan.code)
        self._retriever = plan.open()
        self._lock = threading.Lock()
        self._queue: list[_Waiting] = []
        self._searching = threading.Lock()
        self._calls = self._searches = self._queries = 0
        self._busy = 0.0

    def fingerprint(self) -> str:
        return self._retriever.fingerprint

    def search(self, queries: Sequence[str], k: int) -> tuple[str, list[list[Hit]]]:
        """The fingerprint of what was searched, and for each query its hits."""
        mine = _Waiting(queries, k)
        with self._lock:
            self._queue.append(mine)
            self._calls += 1
        with self._searching:
            if not mine.done.is_set():
                self._serve()
        if mine.error is not None:
            raise mine.error
        return self._retriever.fingerprint, mine.hits

    def status(self) -> dict[str, Any]:
        """Calls taken, searches made of them, queries searched, seconds busy, process, peak memory in MiB."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "pid": os.getpid(),
            "calls": self._calls,
            "searches": self._searches,
            "queries": self._queries,
            "busy_s": self._busy,
            "peak_mib": round(peak, 1),
        }

    def _serve(self) -> None:
        with self._lock:
            batch, self._queue = self._queue, []
        for k in sorted({waiting.k for waiting in batch}):
            group = [waiting for waiting in batch if waiting.k == k]
            started = time.perf_counter()
            try:
                self._search_for(group, k)
            except BaseException as error:  # noqa: BLE001 - each caller gets it
                for waiting in group:
                    waiting.error = error
            self._busy += time.perf_counter() - started
            for waiting in group:
                waiting.done.set()

    def _search_for(self, group: Sequence[_Waiting], k: int) -> None:
        unique = list(dict.fromkeys(query for waiting in group for query in waiting.queries))
        found = dict(zip(unique, self._retriever.search(unique, k), strict=True))
        for waiting in group:
            waiting.hits = [found[query] for query in waiting.queries]
        self._searches += 1
        self._queries += len(unique)


class RetrieverClient:
    """A retriever whose index lives in actors. A dead one is asked again until it is back, or another is.

    Every answer names the index it came from; one of another index is refused, never shown to the policy.
    """

    def __init__(self, actors: Sequence[Actor], fingerprint: str, timeout_s: float, first: int = 0) -> None:
        self._actors = list(actors)
        self._fingerprint = fingerprint
        self._timeout_s = timeout_s
        self._next = first
        self.retried = 0

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        deadline = time.monotonic() + self._timeout_s
        pause = 0.1
        hits: list[list[Hit]]
        while True:
            actor = self._actors[self._next % len(self._actors)]
            try:
                left = max(deadline - time.monotonic(), 0.01)
                fingerprint, hits = actor.call("search", list(queries), k).result(left)
                break
            except FutureTimeoutError:
                raise RetrieverError(f"{actor.name} did not answer within {self._timeout_s:g} s") from None
            except WorkerLostError as error:
                self.retried += 1
                self._next += 1  # another one may be alive; with a single one it comes round again
                if time.monotonic() + pause > deadline:
                    raise RetrieverError(f"no retriever came back within {self._timeout_s:g} s: {error}") from None
                time.sleep(pause)
                pause = min(pause * 2, 2.0)
            except SleuthError:
                raise
            except Exception as error:
                raise RetrieverError(f"{actor.name} failed: {type(error).__name__}: {error}") from error
        if fingerprint != self._fingerprint:
            raise RetrieverError(
                f"{actor.name} searches another index ({fingerprint}) than the run ({self._fingerprint})",
                "every node must read the same index: put it on shared storage",
            )
        return hits
