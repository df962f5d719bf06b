"""A piece of writing as a script: a generator that yields what it needs and is sent the answer.

Scripts read like one conversation each; `play` advances many of them together, so that every round of their requests
is one batch. What a script has been answered is in a journal, from which a killed run goes on.

    def script(writing, passage):
        query = yield from writing.ask("query", {"passage": passage.text}, read=line)
        hits = yield Find(query, 10)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from agent.writing.asks import Ask, Reply, Weigh

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Find:
    """A search for ``query``; the answer is a list of hits."""

    query: str
    k: int


Request = Ask | Weigh | Find
Script = Generator[Request, Any, T]


class Unreadable(Exception):  # noqa: N818 (a verdict on a reply, caught where it is asked for again)
    """The reply is not what was asked for; the message says in a few fixed words why."""


class Rejected(Exception):  # noqa: N818 (a verdict on what was written, and a row of the rejects)
    """Nothing comes of this piece of writing. ``reason`` is one of a few phrases, so that it can be counted."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.text = text


class Answerer(Protocol):
    def __call__(self, requests: Sequence[Request]) -> list[Any]:
        """The answer to each request, in order."""
        ...


def play(scripts: Mapping[str, Script[T]], answer: Answerer, failed: Callable[[Rejected], T]) -> dict[str, T]:
    """What every script returns, by name; ``failed`` makes a result of the rejection that ended one."""
    results: dict[str, T] = {}
    waiting: dict[str, Request] = {}

    def advance(name: str, given: Any) -> None:
        waiting.pop(name, None)
        try:
            waiting[name] = scripts[name].send(given)
        except StopIteration as end:
            results[name] = end.value
        except Rejected as verdict:
            results[name] = failed(verdict)

    for name in scripts:
        advance(name, None)
    while waiting:
        names = list(waiting)
        for name, given in zip(names, answer([waiting[name] for name in names]), strict=True):
            advance(name, given)
    return {name: results[name] for name in scripts}


def asked(make: Callable[[int], Ask], read: Callable[[str], T], attempts: int, *, entire: bool = False) -> Script[T]:
    """What ``read`` makes of the reply, asking up to ``attempts`` times, each time with another seed.

    ``entire``: a reply that was cut off cannot be read, however it begins. Raises Rejected with the last reason; at
    once where no attempt can succeed.
    """
    reason, text = "nothing was asked", ""
    for attempt in range(attempts):
        reply: Reply = yield make(attempt)
        if reply.finish == "refused":
            raise Rejected("the request was refused", reply.failure)
        if reply.finish == "failed":
            reason, text = "the writer failed", reply.failure
            continue
        cut = reply.finish == "length"
        try:
            if not (cut and entire):
                return read(reply.text)
            reason, text = "the reply was cut off", reply.text
        except Unreadable as verdict:
            reason, text = "the reply was cut off" if cut else f"unreadable: {verdict}", reply.text
    raise Rejected(reason, text)
