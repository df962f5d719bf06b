"""What a cluster is to the rest: actors that answer calls, references to shared values, and deaths that show.

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
    """The cluster cannot be had or cannot go on."""


class WorkerLostError(Exception):
    """The actor died before it answered; the call may have been carried out or not.

    ``for_good``: no restart is left. Otherwise the actor comes back blank and may be called again.
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
    """What an actor takes: its role decides where it may stand; ``concurrency`` calls run at a time."""

    role: str
    cpus: float = 0.0
    gpus: float = 0.0
    restarts: int = 0
    concurrency: int = 1


class Actor(Protocol):
    """An object that lives elsewhere. It is made at the first call, and made anew at the first one after a death."""

    @property
    def name(self) -> str: ...

    def call(self, method: str, *args: Any) -> Future[Any]:
        """Start ``method``. The future raises what the method raised, or ``WorkerLostError``.

        A reference from ``Cluster.put`` may stand among ``args`` and arrives as its value.
        """
        ...

    def kill(self) -> None:
        """End it at once, as a crash would. It comes back if a restart is left."""
        ...


class Cluster(Protocol):
    def spawn(self, name: str, build: Callable[[], object], needs: Needs) -> Actor:
        """An actor around what ``build`` makes. ``build`` and the arguments of calls travel pickled."""
        ...

    def put(self, value: Any) -> Any:
        """A reference to ``value`` as it is now, stored once for all who are called with it."""
        ...

    def close(self) -> None:
        """End every actor. Safe to call twice."""
        ...


def answer_of(call: Future[Any], again: Callable[[], Future[Any]], deadline: float) -> Any:
    """What an actor answers, asked ``again`` where it died meanwhile and will come back.

    Raises TimeoutError at ``deadline`` (monotonic seconds), WorkerLostError where it is gone.
    """
    while True:
        try:
            return call.result(max(deadline - time.monotonic(), 0.01))
        except WorkerLostError as error:
            if error.for_good or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
            call = again()
