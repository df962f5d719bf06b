"""Retries of requests to a server: temporary failures, with growing pauses."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

PASSING = frozenset({408, 409, 429, 500, 502, 503, 504})
"""HTTP statuses of a server that is busy, restarting or rate-limiting."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 8.0
_LONGEST_WISH = 60.0


def pause(attempt: int, wished: float = 0.0) -> None:
    """Wait before the retry after attempt ``attempt``, counted from 0, with jitter; ``wished`` seconds at least."""
    time.sleep(max(min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.uniform(0.5, 1.0), wished))


def wished_pause(headers: Mapping[str, str]) -> float:
    """Seconds for which a server asks by ``Retry-After`` to be left alone, a minute at most; 0 if it does not."""
    said = headers.get("Retry-After", "").strip()
    try:
        seconds = float(said) if said.isdecimal() else (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # neither a number nor a date with a time zone
        return 0.0
    return min(max(seconds, 0.0), _LONGEST_WISH)
