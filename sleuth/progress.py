"""Progress of long work as plain lines, for where nothing can be drawn: a pipe, a log file.

The first line comes after ten seconds, further ones every half minute whether or not there is news, and one at the
end. Work that is over sooner prints nothing.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

FIRST_S = 10.0
EVERY_S = 30.0

Clock = Callable[[], float]


class Tally:
    """How far a piece of work is. Called with what is done so far and, where it is known, the total."""

    def __init__(self, title: str, clock: Clock = time.monotonic) -> None:
        self._title, self._clock = title, clock
        self._started = clock()
        self._first: tuple[float, int] | None = None  # when and where counting began: resumed work begins above 0
        self._done = 0
        self._total: int | None = None

    def __call__(self, done: int, total: int | None = None, /) -> None:
        self._first = self._first or (self._clock(), done)
        self._done = done
        self._total = total or self._total

    def expect(self, total: int) -> None:
        """What there is to be done, for callers that count without a total."""
        self._total = total

    @property
    def seconds(self) -> float:
        return self._clock() - self._started

    def line(self) -> str:
        """``encoding corpus.jsonl: 12,288 of 48,297, 25 %, about 14 min left``."""
        left = self._seconds_left()
        when = f"{duration(self.seconds)} so far" if left is None else f"about {duration(left)} left"
        return f"{self._title}: {', '.join([*self._counts(), when])}"

    def last_line(self) -> str:
        """``encoding corpus.jsonl: 48,297 of 48,297, done in 31 min``."""
        return f"{self._title}: {', '.join([*self._counts()[:1], f'done in {duration(self.seconds)}'])}"

    def _counts(self) -> list[str]:
        if self._total:
            return [f"{self._done:,} of {self._total:,}", f"{100 * self._done // self._total} %"]
        return [f"{self._done:,}"] if self._first else []

    def _seconds_left(self) -> float | None:
        """At the pace since counting began; None if that is unknown, or nothing is left to be counted."""
        if self._first is None or not self._total or self._done >= self._total:
            return None
        began, before = self._first
        counted = self._done - before
        return (self._clock() - began) / counted * (self._total - self._done) if counted > 0 else None


@contextlib.contextmanager
def plain_progress(
    title: str, write: Callable[[str], None], *, first_s: float = FIRST_S, every_s: float = EVERY_S
) -> Iterator[Tally]:
    """Yield the callback that counts; ``write`` gets the lines."""
    tally, over = Tally(title), threading.Event()

    def tell() -> None:
        pause = first_s
        while not over.wait(pause):
            write(tally.line())
            pause = every_s

    teller = threading.Thread(target=tell, name="progress", daemon=True)
    teller.start()
    try:
        yield tally
    finally:
        over.set()
        teller.join()
    if tally.seconds >= first_s:
        write(tally.last_line())


def expect(on_progress: object, total: int) -> None:
    """Tell a progress callback what there is to be done, if it takes that."""
    told = getattr(on_progress, "expect", None)
    if callable(told):
        told(total)


def duration(seconds: float) -> str:
    """Roughly, as people say it: ``45 s``, ``14 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
