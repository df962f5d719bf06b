"""Queries of concurrent requests become one call of the retriever.

While a call runs, requests gather; when it ends, all that wait for the same number of hits go next, up to
``max_batch`` queries. Nothing waits for a batch to fill: a lone request is searched at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from sleuth.errors import ConfigError, RetrieverError
from sleuth.protocols import Retriever
from sleuth.types import Hit

Answer = list[list[Hit]]
OnBatch = Callable[[int, float], None]
"""Called after each call of the retriever with its number of queries and its seconds."""


@dataclass(slots=True)
class _Job:
    queries: Sequence[str]
    k: int
    answer: asyncio.Future[Answer]


class Batcher:
    """Searches ``retriever`` for many requests of one event loop; `start` it there, and `close` it in the end."""

    def __init__(self, retriever: Retriever, *, max_batch: int, max_pending: int, on_batch: OnBatch) -> None:
        self._retriever = retriever
        self._max_batch = max_batch
        self._max_pending = max_pending
        self._on_batch = on_batch
        self._waiting: deque[_Job] = deque()
        self._pending = 0
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="batch")
        self._task: asyncio.Task[None] | None = None

    @property
    def pending(self) -> int:
        """Queries that wait to be searched."""
        return self._pending

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop; whoever still waits is told so."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for job in self._waiting:
            if not job.answer.done():
                job.answer.set_exception(RetrieverError("the service is stopping"))
        self._waiting.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def search(self, queries: Sequence[str], k: int) -> Answer:
        """As the retriever. Raises RetrieverError when too many queries wait."""
        if not queries:
            return []
        if self._pending and self._pending + len(queries) > self._max_pending:
            raise RetrieverError(f"{self._pending} queries wait already", "ask again later")
        job = _Job(queries, k, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._pending += len(queries)
        self._wake.set()
        return await job.answer

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            batch = self._take()
            if batch:
                await self._answer(batch)

    def _take(self) -> list[_Job]:
        """The jobs that go next: those at the front that ask for as many hits as the first, in order."""
        batch: list[_Job] = []
        kept: list[_Job] = []
        room = self._max_batch
        while self._waiting:
            job = self._waiting.popleft()
            if job.answer.done():  # its client is gone
                self._pending -= len(job.queries)
            elif batch and (job.k != batch[0].k or len(job.queries) > room):
                kept.append(job)
            else:
                batch.append(job)
                room -= len(job.queries)
                self._pending -= len(job.queries)
            if room <= 0:
                break
        self._waiting.extendleft(reversed(kept))
        if not self._waiting:
            self._wake.clear()
        return batch

    async def _answer(self, batch: list[_Job]) -> None:
        queries = list(dict.fromkeys(query for job in batch for query in job.queries))
        try:
            found = await self._search(queries, batch[0].k)
        except ConfigError as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            for job in batch:  # one of them asks for what cannot be: the others must not suffer
                await self._answer([job])
        except Exception as error:  # noqa: BLE001 (handed to those who asked)
            for job in batch:
                _fail(job, error)
        else:
            by_query = dict(zip(queries, found, strict=True))
            for job in batch:
                if not job.answer.done():
                    job.answer.set_result([by_query[query] for query in job.queries])

    async def _search(self, queries: list[str], k: int) -> Answer:
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            if self._max_batch == 1:
                return await loop.run_in_executor(self._thread, self._one_by_one, queries, k)
            return await loop.run_in_executor(self._thread, self._retriever.search, queries, k)
        finally:
            self._on_batch(len(queries), loop.time() - started)

    def _one_by_one(self, queries: list[str], k: int) -> Answer:
        return [self._retriever.search([query], k)[0] for query in queries]


def _fail(job: _Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
