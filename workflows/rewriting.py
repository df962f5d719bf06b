"""A retriever whose queries are rewritten by a language model before they are searched."""

from __future__ import annotations

import fcntl
import json
import os
import random
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from agent.writing.asks import Ask, Reply, Writer
from envs.grammar import neutralise
from retrieval.documents import documents_of
from retrieval.size import size_of
from sleuth.artifacts import fingerprint_of, text_digest
from sleuth.errors import DataError, PolicyError, RetrieverError
from sleuth.protocols import Documents, Retriever
from sleuth.query_forms import QueryForm, form_of, query_of
from sleuth.seeding import derive_seed
from sleuth.types import Hit
from workflows.synthesis.reading import whole
from workflows.synthesis.script import Unreadable
from workflows.synthesis.templates import load_template

STEP = "rewrite"
_ATTEMPTS = 3


class Rewriter:
    """Writes what is searched in place of a query, once for each: what was written is kept, in ``path`` if given.

    Several processes may share the file. Each reads it once, at its start.
    """

    def __init__(
        self,
        writer: Writer,
        template: str,
        *,
        keep_query: bool = True,
        max_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
        path: Path | None = None,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        """``made_by``: of the writer, what changes its replies beside its name."""
        self._writer = writer
        self._template = load_template(template, {STEP: ("query",)}, {})
        self._step = self._template.steps[STEP]
        self._keep_query = keep_query
        self._max_tokens = max_tokens or self._step.max_tokens
        self._temperature = temperature
        self._seed = seed
        self._path = path
        self._lock = threading.Lock()
        prompt = [self._step.model_dump(mode="json"), self._template.choices]
        self._identity = fingerprint_of([writer.name, made_by or {}, prompt, self._max_tokens, temperature, seed])
        self._known = {} if path is None else _kept(path, self._identity)

    @property
    def fingerprint(self) -> str:
        """Digest of the model's name and settings, its prompt and how it samples."""
        return fingerprint_of([self._identity, self._keep_query])

    def searched(self, queries: Sequence[str]) -> list[str]:
        """What is searched for each query. Raises RetrieverError where the writer fails."""
        with self._lock:
            missing = [query for query in dict.fromkeys(queries) if query not in self._known]
            if missing:
                self._write(missing)
            written = [self._known[query] for query in queries]
        return [f"{query} {text}" if self._keep_query else text for query, text in zip(queries, written, strict=True)]

    def _write(self, queries: Sequence[str]) -> None:
        """What cannot be read is asked for again, sampled, a few times."""
        waiting = {text_digest(query): query for query in queries}
        for attempt in range(_ATTEMPTS):
            failures = self._written(waiting, attempt)
            waiting = {key: waiting[key] for key in failures}
            if not waiting:
                return
        why = next(iter(failures.values()))
        raise RetrieverError(f"{len(waiting)} of {len(queries)} queries were not rewritten: {why}")

    def _written(self, asked: Mapping[str, str], attempt: int) -> dict[str, str]:
        """Write about the queries of ``asked``; returns why there is nothing, for those about which there is not."""
        failures: dict[str, str] = {}

        def keep(ask: Ask, reply: Reply) -> None:
            try:
                text = whole(reply.text)
            except Unreadable as verdict:
                failures[ask.key] = reply.failure or str(verdict)
                return
            self._keep(asked[ask.key], text)

        try:
            self._writer.write([self._ask(key, query, attempt) for key, query in asked.items()], keep)
        except PolicyError as error:
            raise RetrieverError(f"queries cannot be rewritten: {error.message}", error.hint) from error
        return failures

    def _ask(self, key: str, query: str, attempt: int) -> Ask:
        """``key``: of the query, by which the template's choices are drawn."""
        draws = self._template.draw(lambda name: random.Random(derive_seed(self._seed, "draw", key, name)))
        messages = self._step.fill({**draws, "query": neutralise(query, self._writer.reserved)})
        again = [attempt] if attempt else []
        temperature = max(self._temperature, 1.0) if again else self._temperature
        seed = derive_seed(self._seed, key, *again)
        return Ask(key, messages, self._max_tokens, temperature, 1.0, tuple(self._step.stop), seed)

    def _keep(self, query: str, text: str) -> None:
        self._known[query] = text
        if self._path is not None:
            _append(self._path, {"by": self._identity, "query": query, "text": text})


class RewriteRetriever:
    """Searches ``inner`` for what ``rewriter`` writes about each query."""

    def __init__(self, inner: Retriever, rewriter: Rewriter) -> None:
        self.inner = inner
        self.rewriter = rewriter

    @property
    def fingerprint(self) -> str:
        return fingerprint_of({"kind": "rewrite", "inner": self.inner.fingerprint, "by": self.rewriter.fingerprint})

    @property
    def passages(self) -> int | None:
        """Passages searched; None if the inner retriever does not say."""
        return size_of(self.inner)

    @property
    def documents(self) -> Documents | None:
        """Reads whole documents; None if the inner retriever cannot."""
        return documents_of(self.inner)

    @property
    def query_form(self) -> QueryForm:
        """What the inner retriever reads of an agent's search; of it only the query is rewritten."""
        return form_of(self.inner)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        alone = self.query_form == "query"  # then a bar in a text is the user's own
        bare = [text if alone else query_of(text) for text in queries]
        found = self.rewriter.searched(bare) if bare else []
        asked = [new + text[len(old) :] for new, old, text in zip(found, bare, queries, strict=True)]
        return self.inner.search(asked, k)


def _kept(path: Path, identity: str) -> dict[str, str]:
    """What was written by ``identity``, by query. A line that is not whole is passed over: it is written again."""
    known: dict[str, str] = {}
    try:
        lines = path.read_bytes().splitlines() if path.exists() else []
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "rewrites names a file") from None
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.get("by") == identity:
            query, text = row.get("query"), row.get("text")
            if isinstance(query, str) and isinstance(text, str):
                known[query] = text
    return known


def _append(path: Path, row: Mapping[str, str]) -> None:
    """Add a line to a file that other processes add to; one that a kill cut off ends before it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # until the file is closed
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        torn = file.read(1) not in (b"", b"\n")
        file.write((b"\n" if torn else b"") + json.dumps(row).encode() + b"\n")
