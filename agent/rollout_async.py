"""Runs the coroutines of episodes that advance independently."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any


def run_all(work: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all of them in a new event loop; the first failure, or an interrupt, cancels the others."""

    async def together() -> None:
        tasks = [asyncio.ensure_future(one) for one in work]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(together())
