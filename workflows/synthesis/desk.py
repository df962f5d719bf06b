"""Answers the requests of scripts: from the journal what was replied before, from writer and retriever what was not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.writing.asks import Ask, Reply, Weigh, Weighing, Writer
from retrieval.combine.parts import reach
from sleuth.errors import ConfigError, PolicyError
from sleuth.protocols import Retriever
from sleuth.trajectories import open_for_append, read_jsonl
from workflows.synthesis.script import Find, Request

_FEW = 3
"""Failures that a small round may have."""


@dataclass(slots=True)
class Cost:
    """What was asked of the writer. ``failed``: requests that a server or a limit of the model left without reply."""

    asked: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    weighed: int = 0

    def __add__(self, other: Cost) -> Cost:
        mine, theirs = asdict(self), asdict(other)
        return Cost(**{name: mine[name] + theirs[name] for name in mine})


class Journal:
    """The replies of one chunk, each on disk before anything is made of it. A torn last line is dropped.

    Failures are counted and asked for again by the next process. ``path`` None: nothing is kept on disk.
    """

    def __init__(self, path: Path | None) -> None:
        self._replies: dict[str, Any] = {}
        self.cost = Cost()
        self._file = None if path is None else open_for_append(path)
        for _, row in [] if path is None else read_jsonl(path):
            self._count(row["reply"])
            if row["reply"].get("finish") != "failed":
                self._replies[row["key"]] = row["reply"]

    def get(self, key: str) -> Any:
        """The reply to the request of this name; None if there is none."""
        return self._replies.get(key)

    def keep(self, key: str, reply: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps({"key": key, "reply": reply}) + "\n")
            self._file.flush()
        self._replies[key] = reply
        self._count(reply)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _count(self, reply: Any) -> None:
        if "weight" in reply:
            self.cost = self.cost + Cost(weighed=1)
            return
        failed = int(reply["finish"] == "failed")
        self.cost = self.cost + Cost(1, failed, reply["prompt_tokens"], reply["tokens"])


@dataclass(slots=True)
class Desk:
    """``writer`` and ``retriever`` behind the journal of the chunk that is being written.

    ``retriever`` opens that of the recipe when it is first needed. ``max_failed``: share of a round's requests, by
    their own fault or a server's.
    """

    writer: Writer
    journal: Journal
    retriever: Callable[[], Retriever] | None = None
    max_failed: float = 1.0

    def __call__(self, requests: Sequence[Request]) -> list[Any]:
        self._ask([r for r in requests if isinstance(r, Ask) and self.journal.get(r.key) is None])
        self._weigh([r for r in requests if isinstance(r, Weigh) and self.journal.get(r.key) is None])
        found = self._find([r for r in requests if isinstance(r, Find)])
        return [found[r] if isinstance(r, Find) else self._kept(r) for r in requests]

    def _kept(self, request: Ask | Weigh) -> Any:
        reply = self.journal.get(request.key)
        return Reply(**reply) if isinstance(request, Ask) else reply["weight"]

    def _ask(self, asks: Sequence[Ask]) -> None:
        if not asks:
            return
        failures: list[str] = []

        def keep(ask: Ask, reply: Reply) -> None:
            self.journal.keep(ask.key, asdict(reply))
            failures.extend([reply.failure] if reply.failure else [])

        self.writer.write(asks, keep)
        missing = next((ask.key for ask in asks if self.journal.get(ask.key) is None), None)
        if missing is not None:
            raise PolicyError(f"the writer {self.writer.name} gave no reply to {missing}", "it must reply to every ask")
        if len(failures) > max(_FEW, self.max_failed * len(asks)):
            said = f"{len(failures)} of {len(asks)} requests failed: {failures[-1]}"
            raise PolicyError(said, "--resume goes on from here; max_failed says how many may fail")

    def _weigh(self, asks: Sequence[Weigh]) -> None:
        if not asks:
            return
        if not isinstance(self.writer, Weighing):
            raise ConfigError(
                f"the writer {self.writer.name} does not say how likely a text is",
                "use one of kind policy on transformers or vLLM",
            )
        for ask, weight in zip(asks, self.writer.weigh(asks), strict=True):
            sound = weight is not None and math.isfinite(weight)
            self.journal.keep(ask.key, {"weight": weight if sound else None})

    def _find(self, asks: Sequence[Find]) -> Mapping[Find, Any]:
        found: dict[Find, Any] = {}
        for k in sorted({ask.k for ask in asks}):
            if self.retriever is None:
                raise ConfigError("the recipe searches, and has no retriever", "set recipe.retriever")
            retriever = self.retriever()
            same = list(dict.fromkeys(ask for ask in asks if ask.k == k))
            hits = retriever.search([ask.query for ask in same], reach(retriever, k))
            found |= dict(zip(same, hits, strict=True))
        return found
