"""The paths of everything in the run folder of ``sleuth synthesize``, at ``out``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class ChunkLayout:
    """One chunk of units."""

    folder: Path
    number: int

    @property
    def calls(self) -> Path:
        """What the writer has replied so far, a line a request."""
        return self.folder / f"{self.number:06d}.calls.jsonl"

    @property
    def done(self) -> Path:
        """What came of the chunk; there once it is finished."""
        return self.folder / f"{self.number:06d}.json"


@dataclass(frozen=True, slots=True)
class SynthesisLayout:
    out: Path

    @property
    def world(self) -> Path:
        """The same place as in a run of training, so that configs name it alike."""
        from sleuth.layout import RunLayout

        return RunLayout(self.out).world

    @property
    def chunks(self) -> Path:
        return self.out / "chunks"

    def chunk(self, number: int) -> ChunkLayout:
        return ChunkLayout(self.chunks, number)

    @property
    def rows(self) -> Path:
        """The rows that were kept: Tevatron jsonl, to train on."""
        return self.out / "written.jsonl"

    @property
    def rejects(self) -> Path:
        """What was not kept, with the filter and its reason."""
        return self.out / "rejects.jsonl"

    @property
    def record(self) -> Path:
        """Counts, shares and cost."""
        return self.out / "synthesis.json"

    @property
    def page(self) -> Path:
        """Samples to read."""
        return self.out / "samples.html"
