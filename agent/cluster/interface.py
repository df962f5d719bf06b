"""The interface of a cluster: actors that answer calls, references to shared values, and errors for dead actors.

Two implementations: threads of this process (``local.py``) and Ray (``ray_cluster.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from sleuth.errors import SleuthError


class ClusterError(SleuthError):
    """The cluster cannot start or cannot continue."""


class WorkerLostError(Exception):
    """The actor died before it answered; the call may or may not have been executed.

    ``for_good``: no restart is left. Otherwise the actor restarts without state and may be called again.
    """

    def __init__(self, actor: str, reason: str, for_good: bool) -> None:
        super().__init__(actor, reason, for_good)
        self.actor = actor
        self.reason = reason
        self.for_good = for_good

    def __str__(self) -> str:
        return f"{self.actor} died: {self.reason}"


@dataclass(frozen=True, slots=True)
class Needs:
    """What an actor needs: its role determines its resources; ``concurrency`` calls run at a time."""

    role: str
    cpus: float = 0.0
    gpus: float = 0.0
    restarts: int = 0
    concurrency: int = 1


class Actor(Protocol):
    """A remote object, made at the first call, and again at the first call after a death."""

    @property
    def name(self) -> str: ...

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Start ``method``. The future raises what the method raised, or ``WorkerLostError``.

        A reference from ``Cluster.put`` among ``args`` arrives as its value.
        """
        ...

    def kill(self) -> None:
        """Kill it at once, like a crash. It restarts if a restart is left."""
        ...


class Cluster(Protocol):
    def spawn(self, name: str, build: Callable[[], object], needs: Needs) -> Actor:
        """An actor around the result of ``build``. ``build`` and the arguments of calls are pickled."""
        ...

    def put(self, value: Any) -> Any:
        """A reference to the current ``value``, stored once for all calls that use it."""
        ...

    def close(self) -> None:
        """End every actor. Safe to call twice."""
        ...


def answer_of(call: Future[Any], again: Callable[[], Future[Any]], deadline: float) -> Any:
    """An actor's answer, calling ``again`` if it died meanwhile and restarts.

    Raises TimeoutError at ``deadline`` (monotonic seconds), WorkerLostError if it is gone for good.
    """
    while True:
        try:
            return call.result(max(deadline - time.monotonic(), 0.01))
        except WorkerLostError as error:
            if error.for_good or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
            call = again()
