"""One retriever for all workers: an actor that batches its callers' searches, and the workers' client."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from typing import Any

from agent.cluster.identity import check_identity
from agent.cluster.interface import Actor, WorkerLostError
from sleuth.coalescer import Asked, SharedSearch
from sleuth.errors import RetrieverError, SleuthError
from sleuth.memory import peak_mib
from sleuth.protocols import Retriever
from sleuth.query_forms import QueryForm
from sleuth.types import Hit

CALLERS = 64
"""Concurrent calls of a retriever's actor."""


@dataclass(frozen=True, slots=True)
class RetrieverPlan:
    """How an actor opens its index; ``open`` is sent to it, so it must be picklable."""

    open: Callable[[], Retriever]
    code: str


class RetrieverServer:
    """Batches the searches of many callers: requests that arrive during a search form the next batch."""

    def __init__(self, plan: RetrieverPlan) -> None:
        check_identity(plan.code)
        self._retriever = plan.open()
        self._shared = SharedSearch(self._retriever, self._count)
        self._lock = threading.Lock()
        self._calls = self._searches = self._queries = 0
        self._busy = 0.0

    def fingerprint(self) -> str:
        return self._retriever.fingerprint

    def search(self, queries: Sequence[str], k: int) -> tuple[str, list[list[Hit]]]:
        """The index's fingerprint, and the hits of each query."""
        with self._lock:
            self._calls += 1
        return self._retriever.fingerprint, self._shared.ask(Asked(queries, k))

    def status(self) -> dict[str, Any]:
        """Number of calls, searches and queries, seconds busy, process id, peak memory in MiB."""
        return {
            "pid": os.getpid(),
            "calls": self._calls,
            "searches": self._searches,
            "queries": self._queries,
            "busy_s": self._busy,
            "peak_mib": peak_mib(),
        }

    def _count(self, queries: int, seconds: float) -> None:
        self._searches += 1
        self._queries += queries
        self._busy += seconds


class RetrieverClient:
    """A retriever whose index is in actors. If one is dead, it or another is asked until an answer arrives.

    Every answer carries its index's fingerprint; answers from another index are rejected.
    """

    def __init__(
        self,
        actors: Sequence[Actor],
        fingerprint: str,
        timeout_s: float,
        first: int = 0,
        query_form: QueryForm = "query",
    ) -> None:
        self.query_form: QueryForm = query_form
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
                self._next += 1  # the next one may be alive; a single one is asked again
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
                f"{actor.name} searches a different index ({fingerprint}) from the run's ({self._fingerprint})",
                "every node must read the same index: put it on shared storage",
            )
        return hits
