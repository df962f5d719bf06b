"""Failure handling around a retriever: timeout, retries with back-off, circuit breaker."""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from retrieval.documents import documents_of
from retrieval.size import limit_of, size_of
from sleuth.errors import ConfigError, RetrieverError
from sleuth.hits import distinct
from sleuth.pictures import search_images, takes_images
from sleuth.protocols import Documents, Retriever
from sleuth.query_forms import QueryForm, form_of
from sleuth.types import Hit, Image

Answer = list[list[Hit]]


class Clock(Protocol):
    """The wrapper's source of time, replaceable in tests."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class ResilientRetriever:
    """Gives every search a timeout, retries after failures, and stops calling a retriever that is down.

    ``breaker_failures`` failed attempts in a row open the breaker: searches then fail immediately, until
    ``breaker_cooldown_s`` have passed and a single one is let through. Every failure is a RetrieverError; a
    ConfigError is the caller's mistake and passes through unchanged, without a retry. A search that hangs
    keeps its thread but blocks neither later searches nor the exit of the process.
    """

    def __init__(
        self,
        inner: Retriever,
        *,
        timeout_s: float = 30.0,
        retries: int = 2,
        backoff_s: float = 0.2,
        breaker_failures: int = 5,
        breaker_cooldown_s: float = 10.0,
        seed: int = 0,
        clock: Clock = time,
    ) -> None:
        self.inner = inner
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._random = random.Random(seed)
        self._clock = clock
        self._breaker = _Breaker(breaker_failures, breaker_cooldown_s, clock)
        self._workers = _Workers()

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint

    @property
    def query_form(self) -> QueryForm:
        """The inner retriever's."""
        return form_of(self.inner)

    @property
    def takes_images(self) -> bool:
        """Whether the inner retriever takes pictures as queries."""
        return takes_images(self.inner)

    @property
    def passages(self) -> int | None:
        """Passages searched; None if the inner retriever does not say."""
        return size_of(self.inner)

    @property
    def most_hits(self) -> int | None:
        """Hits of a query at most; None if the inner retriever does not say."""
        return limit_of(self.inner)

    @property
    def documents(self) -> Documents | None:
        """Reads whole documents; None if the inner retriever cannot."""
        return documents_of(self.inner)

    def search(self, queries: Sequence[str], k: int) -> Answer:
        """Like the inner retriever. Raises RetrieverError naming the last failure."""
        return self._search(lambda: self.inner.search(list(queries), k), len(queries))

    def search_images(self, images: Sequence[Image], k: int) -> Answer:
        """Like `search`, with pictures."""
        return self._search(lambda: search_images(self.inner, images, k), len(images))

    def _search(self, once: Callable[[], Answer], queries: int) -> Answer:
        for attempt in range(self._retries + 1):
            self._breaker.admit()
            try:
                answer = self._attempt(once, queries)
            except ConfigError:
                self._breaker.succeeded()
                raise
            except Exception as error:
                self._breaker.failed(error)
                if attempt == self._retries:
                    raise _as_retriever_error(error, attempt + 1) from error
                self._clock.sleep(self._pause(attempt))
            except BaseException:
                self._breaker.abandoned()
                raise
            else:
                self._breaker.succeeded()
                return answer
        raise AssertionError("unreachable")

    def _attempt(self, once: Callable[[], Answer], queries: int) -> Answer:
        answer = self._workers.run(once, self._timeout_s)
        if len(answer) != queries:
            raise RetrieverError(f"the retriever returned {len(answer)} lists of hits for {queries} queries")
        return [distinct(hits) for hits in answer]

    def _pause(self, attempt: int) -> float:
        """Seconds before the next attempt: exponential back-off, times a random factor from 0.5 to 1."""
        return float(self._backoff_s * 2**attempt * (0.5 + 0.5 * self._random.random()))


class _Breaker:
    """Closed: all calls pass. Open: none. Half-open, after the cool-down: one, whose outcome decides."""

    def __init__(self, failures: int, cooldown_s: float, clock: Clock) -> None:
        self._limit = failures
        self._cooldown_s = cooldown_s
        self._clock = clock
        self._failures = 0
        self._opened_at: float | None = None
        self._probing = False
        self._reason = ""
        self._lock = threading.Lock()

    def admit(self) -> None:
        with self._lock:
            if self._opened_at is None:
                return
            waited = self._clock.monotonic() - self._opened_at
            if waited < self._cooldown_s or self._probing:
                raise RetrieverError(
                    f"the retriever failed {self._failures} times in a row, last with: {self._reason}",
                    f"it is retried every {self._cooldown_s:g} s",
                )
            self._probing = True

    def succeeded(self) -> None:
        with self._lock:
            self._failures = 0
            self._opened_at = None
            self._probing = False

    def failed(self, error: Exception) -> None:
        with self._lock:
            self._failures += 1
            self._reason = str(error) or type(error).__name__
            self._probing = False
            if self._failures >= self._limit:
                self._opened_at = self._clock.monotonic()

    def abandoned(self) -> None:
        """The caller gave up (Ctrl-C), which says nothing about the retriever."""
        with self._lock:
            self._probing = False


@dataclass(slots=True)
class _Job:
    work: Callable[[], Answer]
    done: threading.Event = field(default_factory=threading.Event)
    answer: Answer | None = None
    error: BaseException | None = None


class _Workers:
    """Reusable daemon threads: a hanging search must be abandoned, which executors do not allow (they
    join their threads at exit), and short-lived threads cost memory in the JVM."""

    def __init__(self) -> None:
        self._idle: queue.SimpleQueue[queue.SimpleQueue[_Job]] = queue.SimpleQueue()

    def run(self, work: Callable[[], Answer], timeout_s: float) -> Answer:
        job = _Job(work)
        try:
            inbox = self._idle.get_nowait()
        except queue.Empty:
            inbox = queue.SimpleQueue()
            threading.Thread(target=self._serve, args=(inbox,), name="retriever", daemon=True).start()
        inbox.put(job)
        if not job.done.wait(timeout_s):
            raise RetrieverError(
                f"the retriever did not answer within {timeout_s:g} s", "set by the retriever's timeout_s"
            )
        if job.error is not None:
            raise job.error
        assert job.answer is not None
        return job.answer

    def _serve(self, inbox: queue.SimpleQueue[_Job]) -> None:
        while True:
            job = inbox.get()
            try:
                job.answer = job.work()
            except BaseException as error:  # noqa: BLE001 (handed to the caller)
                job.error = error
            job.done.set()
            del job
            self._idle.put(inbox)


def _as_retriever_error(error: Exception, attempts: int) -> RetrieverError:
    tried = f" ({attempts} attempts)" if attempts > 1 else ""
    if isinstance(error, RetrieverError):
        return RetrieverError(f"{error.message}{tried}", error.hint)
    return RetrieverError(f"the retriever failed{tried}: {type(error).__name__}: {error}")
