"""The seam of the filters, and what they work with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from retrieval.config import Progress
from workflows.synthesis.script import Answerer
from workflows.synthesis.writing import Style, Written


@dataclass(frozen=True, slots=True)
class Bench:
    """What a filter works with, ``name`` being its own. ``answer`` asks the writer and keeps what it replies."""

    name: str
    answer: Answerer
    reserved: frozenset[str]
    style: Style
    seed: int
    corpus: Path | None
    progress: Progress


class Filter(Protocol):
    def judge(self, rows: Sequence[Written]) -> Sequence[str | None]:
        """Why each row is dropped, one of a few phrases that can be counted; None keeps it."""
        ...

    def keep(self, rows: Sequence[Written]) -> None:
        """What all filters have kept, of this chunk or of one that was done before; a filter may remember it."""
        ...

    def about(self) -> Mapping[str, object]:
        """What its verdicts depend on beside its settings, as plain values for the record of the run.

        Where this has changed since a chunk was done, its rows are filtered anew.
        """
        ...
