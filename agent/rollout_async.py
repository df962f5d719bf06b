"""Episodes that advance each on their own: run coroutines to their end, and gather what coincides into one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Gathered(Generic[T, R]):
    """Awaitable calls of a blocking batch function; those made while one is under way go out together in the next.

    ``call`` gets a list and gives as many results, in order; it runs in one thread, never twice at a time.
    """

    def __init__(self, call: Callable[[list[T]], Sequence[R]]) -> None:
        self._call = call
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gathered")
        self._waiting: list[tuple[T, asyncio.Future[R]]] = []
        self._sender: asyncio.Task[None] | None = None

    async def __call__(self, item: T) -> R:
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._sender is None:
            self._sender = asyncio.create_task(self._send())
        return await future

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    async def _send(self) -> None:
        try:
            while self._waiting:
                await asyncio.sleep(0)  # whoever is ready now joins this call
                batch, self._waiting = self._waiting, []
                items = [item for item, _ in batch]
                try:
                    results = await asyncio.get_running_loop().run_in_executor(self._thread, self._call, items)
                except Exception as error:  # noqa: BLE001 - it is the callers' to handle
                    outcomes: list[Any] = [error] * len(batch)
                else:
                    outcomes = list(results)
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    if future.done():
                        continue
                    if isinstance(outcome, Exception):
                        future.set_exception(outcome)
                    else:
                        future.set_result(outcome)
        finally:
            self._sender = None


def run_all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all to their end on a loop of their own; the first failure, or an interrupt, cancels the others."""

    async def together() -> None:
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(together())
