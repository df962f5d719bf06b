"""Retries of requests to a server: temporary failures, with growing pauses."""

from __future__ import annotations

import random
import time

PASSING = frozenset({408, 409, 429, 500, 502, 503, 504})
"""HTTP statuses of a server that is busy, restarting or rate-limiting."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0


def pause(attempt: int) -> None:
    """Wait before the retry after attempt ``attempt``, counted from 0, with jitter."""
    time.sleep(min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0))
