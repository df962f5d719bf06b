"""Coalesces the requests of concurrent callers into calls of one batch function.

Requests that arrive during a call are queued; when it ends, those that fit together form the next call. Nothing waits
for a batch to fill up: a lone request is served immediately. Only one call runs at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sleuth.errors import ConfigError
from sleuth.pictures import Query, search_mixed
from sleuth.protocols import Retriever
from sleuth.types import Hit

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True)
class _Job(Generic[T, R]):
    item: T
    key: Hashable
    size: int
    future: Future[R] = field(default_factory=Future)


class Coalescer(Generic[T, R]):
    """Batches the items of many callers: threads use `ask`, event loops `ask_async`.

    ``call`` takes a list of items and returns one outcome for each, in order. An exception among the outcomes is
    raised to its own caller; one raised by ``call`` itself goes to the whole batch. If it is a ``one_fault`` (an error
    that a single bad item can cause), the items are retried one by one so that the other callers are not affected.

    Items of one batch share a ``key``, and their sizes add up to at most ``max_size``, except that a single larger
    item is a batch of its own. A caller that has gone away (a cancelled `ask_async`) is skipped.
    """

    def __init__(
        self,
        call: Callable[[list[T]], Sequence[R | Exception]],
        *,
        key: Callable[[T], Hashable] = lambda _: None,
        size: Callable[[T], int] = lambda _: 1,
        max_size: int | None = None,
        one_fault: tuple[type[Exception], ...] = (),
    ) -> None:
        self._call, self._key, self._size = call, key, size
        self._max_size = float("inf") if max_size is None else max_size
        self._one_fault = one_fault
        self._waiting: deque[_Job[T, R]] = deque()
        self._pending = 0
        self._closed = self._draining = False
        self._lock = threading.Lock()
        self._calling = threading.RLock()  # ``call`` may itself ask
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="coalescer")  # for callers on an event loop

    @property
    def pending(self) -> int:
        """The total size of all waiting items."""
        return self._pending

    def ask(self, item: T) -> R:
        """The outcome of ``item``. A caller that finds no call running makes it on behalf of all waiting callers."""
        job = self._enqueue(item)
        self._serve(job)
        return job.future.result()

    async def ask_async(self, item: T) -> R:
        """Like `ask`, without blocking the event loop; tasks that are ready at the same time share a call."""
        job = self._enqueue(item)
        asyncio.get_running_loop().call_soon(self._start)
        return await asyncio.wrap_future(job.future)

    def close(self, error: Exception | None = None) -> None:
        """Accept no more items; waiting callers get ``error`` or are cancelled. A running call is left to finish."""
        with self._lock:
            self._closed = True
            waiting, self._pending = list(self._waiting), 0
            self._waiting.clear()
        for job in waiting:
            if error is None:
                job.future.cancel()
            elif job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
        self._thread.shutdown(wait=False)

    def _enqueue(self, item: T) -> _Job[T, R]:
        job: _Job[T, R] = _Job(item, self._key(item), self._size(item))
        with self._lock:
            if self._closed:
                raise RuntimeError("this coalescer is closed")
            self._waiting.append(job)
            self._pending += job.size
        return job

    def _start(self) -> None:
        with self._lock:
            if self._draining or not self._waiting:
                return
            self._draining = True
            self._thread.submit(self._drain)

    def _drain(self) -> None:
        """Make calls until nothing is waiting."""
        while self._draining:
            with self._calling:
                self._answer(self._take())
            with self._lock:
                self._draining = bool(self._waiting)

    def _serve(self, job: _Job[T, R]) -> None:
        """Make calls for all waiting callers until ``job`` is answered."""
        with self._calling:
            while not job.future.done():
                self._answer(self._take())

    def _take(self) -> list[_Job[T, R]]:
        """The oldest waiting job, and all later ones that fit into the same call."""
        batch: list[_Job[T, R]] = []
        kept: list[_Job[T, R]] = []
        room = self._max_size
        with self._lock:
            while self._waiting and (room > 0 or not batch):
                job = self._waiting.popleft()
                if batch and (job.key != batch[0].key or job.size > room):
                    kept.append(job)
                    continue
                self._pending -= job.size
                if job.future.set_running_or_notify_cancel():
                    batch.append(job)
                    room -= job.size
            self._waiting.extendleft(reversed(kept))
        return batch

    def _answer(self, batch: list[_Job[T, R]]) -> None:
        if not batch:  # every waiting caller has gone away
            return
        outcomes: Sequence[Any]
        try:
            outcomes = self._call([job.item for job in batch])
            if len(outcomes) != len(batch):
                raise ValueError(f"{len(outcomes)} outcomes were returned for {len(batch)} items")
        except BaseException as error:  # noqa: BLE001 - raised to the callers
            if isinstance(error, self._one_fault) and len(batch) > 1:
                for job in batch:
                    self._answer([job])
                return
            outcomes = [error] * len(batch)
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, BaseException):
                job.future.set_exception(outcome)
            else:
                job.future.set_result(outcome)


@dataclass(frozen=True, slots=True)
class Asked:
    """One caller's request to a retriever."""

    queries: Sequence[Query]
    k: int


OnSearch = Callable[[int, float], None]
"""Called after each retriever call with its number of queries and its duration in seconds."""


class SharedSearch:
    """One retriever for many callers: requests with the same ``k`` share a call, without duplicate queries.

    The retriever gets at most ``max_batch`` queries a call. A larger request asks for its pieces one after another, so
    that others take turns with its calls.
    """

    def __init__(self, retriever: Retriever, on_search: OnSearch, *, max_batch: int | None = None) -> None:
        self._retriever, self._on_search, self._max_batch = retriever, on_search, max_batch
        self._later = 0
        self._lock = threading.Lock()
        self._calls: Coalescer[Asked, list[list[Hit]]] = Coalescer(
            self._search,
            key=lambda one: one.k,
            size=lambda one: len(one.queries),
            max_size=max_batch,
            one_fault=(ConfigError,),
        )

    @property
    def pending(self) -> int:
        """Queries that wait, those of pieces whose turn is yet to come included."""
        return self._calls.pending + self._later

    def ask(self, asked: Asked) -> list[list[Hit]]:
        """The hits of each query."""
        if self._is_one_call(asked):
            return self._calls.ask(asked)
        found: dict[Query, list[Hit]] = {}
        with contextlib.closing(self._pieces(asked)) as pieces:
            for piece in pieces:
                found |= zip(piece.queries, self._calls.ask(piece), strict=True)
        return [found[query] for query in asked.queries]

    async def ask_async(self, asked: Asked) -> list[list[Hit]]:
        """Like `ask`, without blocking the event loop."""
        if self._is_one_call(asked):
            return await self._calls.ask_async(asked)
        found: dict[Query, list[Hit]] = {}
        with contextlib.closing(self._pieces(asked)) as pieces:
            for piece in pieces:
                found |= zip(piece.queries, await self._calls.ask_async(piece), strict=True)
        return [found[query] for query in asked.queries]

    def close(self, error: Exception | None = None) -> None:
        """Accept no more requests; waiting callers get ``error`` or are cancelled."""
        self._calls.close(error)

    def _is_one_call(self, asked: Asked) -> bool:
        return self._max_batch is None or len(asked.queries) <= self._max_batch

    def _pieces(self, asked: Asked) -> Generator[Asked]:
        """``asked`` without duplicates, a call at a time; the rest is counted as pending."""
        assert self._max_batch
        unique = list(dict.fromkeys(asked.queries))
        left = len(unique)
        self._wait_for(left)
        try:
            for start in range(0, len(unique), self._max_batch):
                piece = unique[start : start + self._max_batch]
                left -= len(piece)
                self._wait_for(-len(piece))
                yield Asked(piece, asked.k)
        finally:
            self._wait_for(-left)

    def _wait_for(self, queries: int) -> None:
        with self._lock:
            self._later += queries

    def _search(self, asked: list[Asked]) -> list[list[list[Hit]]]:
        queries = list(dict.fromkeys(query for one in asked for query in one.queries))
        found: dict[Query, list[Hit]] = {}
        if queries:
            began = time.perf_counter()
            try:
                found |= zip(queries, search_mixed(self._retriever, queries, asked[0].k), strict=True)
            finally:
                self._on_search(len(queries), time.perf_counter() - began)
        return [[found[query] for query in one.queries] for one in asked]
