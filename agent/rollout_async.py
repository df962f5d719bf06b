"""Episodes that advance each on their own: run coroutines to their end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any


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
