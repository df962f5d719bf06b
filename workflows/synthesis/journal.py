"""What a chunk is written about, what was replied so far, and what it cost, on disk before anything is made of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.writing.asks import Ask, Weigh
from retrieval.passages import content_key
from retrieval.training.row_layouts import tevatron_row
from sleuth.artifacts import fingerprint_of
from sleuth.errors import ArtifactError
from sleuth.trajectories import open_for_append, read_jsonl
from workflows.synthesis.templates import Template
from workflows.synthesis.writing import Unit


@dataclass(slots=True)
class Cost:
    """What was asked of the writer.

    ``failed``: requests that a server or a limit of the model left without reply. ``retried``: answers of a server that
    were busy or broken, and were asked for again in the same request. ``weighed``: texts of which was asked how likely
    they are, reading ``weighed_tokens``.
    """

    asked: int = 0
    failed: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    weighed: int = 0
    weighed_tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        mine, theirs = asdict(self), asdict(other)
        return Cost(**{name: mine[name] + theirs[name] for name in mine})


@dataclass(frozen=True, slots=True)
class About:
    """Digests of the template, of each unit with all that it holds, and of what the filters go by."""

    template: str
    units: tuple[str, ...]
    filters: str

    def check(self, saved: Mapping[str, Any] | None, path: Path) -> None:
        """Raise ArtifactError where ``path`` was written about something else; fewer or more units are the same.

        What the filters go by may change: replies stay what they are, and are filtered anew.
        ``saved``: what it says that it was written about.
        """
        if not saved:
            changed = "the form of such files"
        elif saved["template"] != self.template:
            changed = "the prompt template"
        elif any(before != now for before, now in zip(saved["units"], self.units, strict=False)):
            changed = "what is written about (corpus or data)"
        else:
            return
        hint = "put it back as it was, or begin anew with --overwrite or another --out"
        raise ArtifactError(f"{changed} has changed since {path} was written", hint)


def about(template: Template, units: Sequence[Unit], filters: object) -> About:
    """``filters``: plain values of what they go by."""
    prompts = fingerprint_of(template.model_dump(mode="json"))
    return About(prompts, tuple(map(_digest, units)), fingerprint_of(filters))


def _digest(unit: Unit) -> str:
    passage = unit.passage and [unit.passage.id, content_key(unit.passage)]
    return fingerprint_of([unit.id, passage, unit.row and tevatron_row(unit.row)])[:16]


class Journal:
    """The replies of one chunk, each on disk before anything is made of it. A torn last line is dropped.

    A reply is known by the name of its request and by a digest of what was said in it: where an earlier step was
    answered otherwise, it is none. A failure stays known where a later attempt was answered; others are counted and
    asked for again by the next process. ``path`` None: nothing is kept on disk. Raises ArtifactError if it was written
    about something else than ``about``.
    """

    def __init__(self, path: Path | None, about: About | None = None) -> None:
        self._replies: dict[tuple[str, str], Any] = {}
        self.cost = Cost()
        self._before = 0.0
        self._began = time.monotonic()
        self._file = None if path is None else open_for_append(path)
        if path is not None and about is not None:
            self._read(path, about)
            self._write({"about": asdict(about)})

    @property
    def seconds(self) -> float:
        """Since it was opened, with those of the processes before, as far as they have written them down."""
        return self._before + self._here

    @property
    def _here(self) -> float:
        return time.monotonic() - self._began

    def get(self, request: Ask | Weigh) -> Any:
        """The reply to ``request``; None if there is none to what it says."""
        return self._replies.get((request.key, _said(request)))

    def add(self, request: Ask | Weigh, reply: Any) -> None:
        said = _said(request)
        self._write({"key": request.key, "said": said, "reply": reply, "at": round(self._here, 3)})
        self._replies[request.key, said] = reply
        self._count(reply)

    def close(self) -> None:
        if self._file is not None:
            self._write({"at": round(self._here, 3)})
            self._file.close()

    def _read(self, path: Path, about: About) -> None:
        """A process has begun at each line that says what is written about; its last line says how long it went on."""
        known, last = False, 0.0
        failures: dict[tuple[str, str], Any] = {}
        for _, row in read_jsonl(path):
            if "about" in row or not known:
                about.check(row.get("about"), path)
                known, self._before, last = True, self._before + last, 0.0
            last = row.get("at", last)
            if "key" in row:
                self._count(row["reply"])
                failed = row["reply"].get("finish") in ("failed", "refused")
                (failures if failed else self._replies)[row["key"], row.get("said", "")] = row["reply"]
        self._before += last
        answered = _last_attempts(self._replies)
        for (key, said), reply in failures.items():
            place, attempt = place_of(key)
            if attempt < answered.get((place, said), -1):
                self._replies.setdefault((key, said), reply)

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def _count(self, reply: Any) -> None:
        if "weight" in reply:
            self.cost = self.cost + Cost(weighed=1, weighed_tokens=reply["tokens"])
            return
        failed = int(reply["finish"] in ("failed", "refused"))
        self.cost = self.cost + Cost(1, failed, reply["retries"], reply["prompt_tokens"], reply["tokens"])


def place_of(key: str) -> tuple[str, int]:
    """What is asked for in the request of this name, whichever attempt it is, and the attempt."""
    place, _, attempt = key.rpartition("/")
    return place, int(attempt) if attempt.isdecimal() else 0


def _last_attempts(replies: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The last attempt that was answered at each place, to the same words."""
    found: dict[tuple[str, str], int] = {}
    for key, said in replies:
        place, attempt = place_of(key)
        found[place, said] = max(attempt, found.get((place, said), 0))
    return found


def _said(request: Ask | Weigh) -> str:
    text = request.text if isinstance(request, Weigh) else None
    return fingerprint_of([[[one.role, one.text] for one in request.messages], text])[:16]
