"""A cluster of threads in this process: no Ray, the same interface, deaths included."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from agent.cluster.interface import Needs, WorkerLostError

_building = threading.Lock()
"""Loading a model changes settings of torch for the whole process, so one actor is made at a time."""

_Call = tuple[Future[Any], str, tuple[Any, ...]]


class LocalActor:
    """An object with its own threads. ``kill`` abandons them: their answers are ignored."""

    def __init__(self, name: str, build: Callable[[], object], needs: Needs) -> None:
        self._name = name
        self._build = build
        self._needs = needs
        self._restarts = needs.restarts
        self._lock = threading.Lock()
        self._open: set[Future[Any]] = set()
        self._life: _Life | None = _Life(name, build, needs.concurrency)

    @property
    def name(self) -> str:
        return self._name

    def call(self, method: str, *args: Any) -> Future[Any]:
        heard: Future[Any] = Future()
        heard.set_running_or_notify_cancel()
        with self._lock:
            if self._life is None:
                heard.set_exception(WorkerLostError(self._name, "it was ended", for_good=True))
                return heard
            self._open.add(heard)
            answer = self._life.start(method, args)
        answer.add_done_callback(lambda done: self._hear(heard, done))
        return heard

    def kill(self) -> None:
        self._end(restart=True)

    def close(self) -> None:
        self._end(restart=False)

    def _end(self, restart: bool) -> None:
        with self._lock:
            if self._life is None:
                return
            ended = self._life
            restart = restart and self._restarts > 0
            self._restarts -= restart
            self._life = _Life(self._name, self._build, self._needs.concurrency) if restart else None
            lost, self._open = self._open, set()
        ended.abandon()
        for heard in lost:
            heard.set_exception(WorkerLostError(self._name, "it was killed", for_good=not restart))

    def _hear(self, heard: Future[Any], done: Future[Any]) -> None:
        with self._lock:
            if heard not in self._open:
                return
            self._open.discard(heard)
        if done.cancelled():
            heard.set_exception(WorkerLostError(self._name, "it was killed", for_good=False))
        elif error := done.exception():
            heard.set_exception(error)
        else:
            heard.set_result(done.result())


class _Life:
    """One incarnation: the object, once it is made, and its daemon threads."""

    def __init__(self, name: str, build: Callable[[], object], concurrency: int) -> None:
        self._build = build
        self._made: object | None = None
        self._asked: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._serve, name=f"{name} {number}", daemon=True) for number in range(concurrency)
        ]
        for thread in self._threads:
            thread.start()

    def start(self, method: str, args: tuple[Any, ...]) -> Future[Any]:
        answer: Future[Any] = Future()
        self._asked.put((answer, method, args))
        return answer

    def abandon(self) -> None:
        """Waiting calls are not started; the answer of a running one is ignored."""
        with contextlib.suppress(Empty):
            while call := self._asked.get_nowait():
                call[0].cancel()
        for _ in self._threads:
            self._asked.put(None)

    def _serve(self) -> None:
        while call := self._asked.get():
            answer, method, args = call
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                answer.set_result(self._run(method, args))
            except BaseException as error:  # noqa: BLE001 - the caller's to raise
                answer.set_exception(error)

    def _run(self, method: str, args: tuple[Any, ...]) -> Any:
        with _building:
            if self._made is None:
                self._made = self._build()
        return getattr(self._made, method)(*args)


class LocalCluster:
    """Actors in threads. ``put`` copies a value, so that later changes do not affect it."""

    def __init__(self) -> None:
        self._actors: list[LocalActor] = []

    def spawn(self, name: str, build: Callable[[], object], needs: Needs) -> LocalActor:
        actor = LocalActor(name, build, needs)
        self._actors.append(actor)
        return actor

    def put(self, value: Any) -> Any:
        return copy.deepcopy(value)

    def close(self) -> None:
        for actor in self._actors:
            actor.close()
