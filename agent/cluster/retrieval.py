"""One retriever for all workers of a node: an actor that batches across its callers, and the client they hold."""

from __future__ import annotations

import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

from agent.cluster.identity import check_identity
from agent.cluster.interface import Actor, WorkerLostError
from sleuth.coalescer import Asked, shared_search
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


class RetrieverServer:
    """Searches for many callers at once: what arrives while one search runs is the next search, in one batch."""

    def __init__(self, plan: RetrieverPlan) -> None:
        check_identity(plan.code)
        self._retriever = plan.open()
        self._shared = shared_search(self._retriever, self._count)
        self._lock = threading.Lock()
        self._calls = self._searches = self._queries = 0
        self._busy = 0.0

    def fingerprint(self) -> str:
        return self._retriever.fingerprint

    def search(self, queries: Sequence[str], k: int) -> tuple[str, list[list[Hit]]]:
        """The fingerprint of what was searched, and for each query its hits."""
        with self._lock:
            self._calls += 1
        return self._retriever.fingerprint, self._shared.ask(Asked(queries, k))

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

    def _count(self, queries: int, seconds: float) -> None:
        self._searches += 1
        self._queries += queries
        self._busy += seconds


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
