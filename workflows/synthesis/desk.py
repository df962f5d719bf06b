"""Answers the requests of scripts: from the journal what was replied before, from writer and retriever what was not."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from agent.writing.asks import Ask, Reply, Weigh, Weighing, Writer
from retrieval.combine.parts import reach
from sleuth.errors import ConfigError, PolicyError
from sleuth.protocols import Retriever
from sleuth.types import Passage
from workflows.synthesis.journal import Journal, place_of
from workflows.synthesis.reading import sound
from workflows.synthesis.script import Find, Request

_FEW = 3
"""Failures that a small round may have."""


@dataclass(slots=True)
class Desk:
    """``writer`` and ``retriever`` behind the journal of the chunk that is being written.

    ``retriever`` opens that of the recipe when it is first needed; what it finds of ``held`` is left out.
    ``max_failed``: share of a round's requests, by their own fault or a server's. What has failed before does not count
    again: a round may hold nothing else.
    """

    writer: Writer
    journal: Journal
    retriever: Callable[[], Retriever] | None = None
    held: Container[Passage] = ()
    max_failed: float = 1.0
    _failed: set[str] = field(default_factory=set)

    def __call__(self, requests: Sequence[Request]) -> list[Any]:
        self._ask([r for r in requests if isinstance(r, Ask)])
        self._weigh([r for r in requests if isinstance(r, Weigh) and self.journal.get(r) is None])
        found = self._find([r for r in requests if isinstance(r, Find)])
        return [found[r] if isinstance(r, Find) else self._kept(r) for r in requests]

    def _kept(self, request: Ask | Weigh) -> Any:
        reply = self.journal.get(request)
        return Reply(**reply) if isinstance(request, Ask) else reply["weight"]

    def _ask(self, asks: Sequence[Ask]) -> None:
        """Put to the writer what was not answered before; what was counts in the share of failures."""
        new = [ask for ask in asks if self.journal.get(ask) is None]
        if not new:
            return
        fresh = sum(_place(ask) not in self._failed for ask in asks)
        failures: dict[str, str] = {}

        def receive(ask: Ask, reply: Reply) -> None:
            reply = replace(reply, text=sound(reply.text), failure=sound(reply.failure))
            self.journal.add(ask, asdict(reply))
            if reply.failure and _place(ask) not in self._failed:
                failures[_place(ask)] = reply.failure

        self.writer.write(new, receive)
        missing = next((ask.key for ask in new if self.journal.get(ask) is None), None)
        if missing is not None:
            raise PolicyError(f"the writer {self.writer.name} gave no reply to {missing}", "it must reply to every ask")
        self._failed |= failures.keys()
        if len(failures) > max(_FEW, self.max_failed * fresh):
            said = f"{len(failures)} of {fresh} requests failed: {list(failures.values())[-1]}"
            raise PolicyError(said, "--resume goes on from here; max_failed says how many may fail")

    def _weigh(self, asks: Sequence[Weigh]) -> None:
        if not asks:
            return
        for ask, weight in zip(asks, weighing(self.writer).weigh(asks), strict=True):
            known = weight.logprob is not None and math.isfinite(weight.logprob)
            self.journal.add(ask, {"weight": weight.logprob if known else None, "tokens": weight.tokens})

    def _find(self, asks: Sequence[Find]) -> Mapping[Find, Any]:
        found: dict[Find, Any] = {}
        for k in sorted({ask.k for ask in asks}):
            if self.retriever is None:
                raise ConfigError("the recipe searches, and has no retriever", "set recipe.retriever")
            retriever = self.retriever()
            same = list(dict.fromkeys(ask for ask in asks if ask.k == k))
            hits = retriever.search([ask.query for ask in same], reach(retriever, k))
            free = ([hit for hit in some if hit.passage not in self.held] for some in hits)
            found |= dict(zip(same, free, strict=True))
        return found


def weighing(writer: Writer) -> Weighing:
    """``writer``, if it can say how likely a text is. Raises ConfigError."""
    if not isinstance(writer, Weighing):
        raise ConfigError(
            f"the writer {writer.name} does not say how likely a text is",
            "use one of kind policy on transformers or vLLM",
        )
    return writer


def _place(ask: Ask) -> str:
    return place_of(ask.key)[0]
