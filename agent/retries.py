"""When a server is asked again, and after which pause: what passes by itself, with growing pauses."""

from __future__ import annotations

import random
import time

PASSING = frozenset({408, 409, 429, 500, 502, 503, 504})
"""Statuses of a server that is busy, restarting, or wants to be asked more slowly."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0


def pause(attempt: int) -> None:
    """Wait before the try after number ``attempt``, counted from 0; not all callers at the same time."""
    time.sleep(min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0))
