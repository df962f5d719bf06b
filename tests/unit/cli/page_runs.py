"""A run whose hits are pages, and the index that has their pictures."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

from PIL import Image as Pillow
from PIL import ImageDraw
from report_runs import CONFIG, played, write_rows

from retrieval.images import find_image
from retrieval.store import StoreWriter
from sleuth.runs import RunFolder
from sleuth.types import Hit, Passage, ScoredTrajectory, Search, Trajectory, Turn


def page(words: str, size: tuple[int, int] = (300, 400)) -> bytes:
    picture = Pillow.new("RGB", size, "white")
    ImageDraw.Draw(picture).multiline_text((20, 20), "\n".join([words] * 12), fill="black")
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def page_index(folder: Path, names: tuple[str, ...] = ("oslo", "voss", "bergen")) -> list[Passage]:
    """Passages that are pages, in a folder that holds them as an index does."""
    files = folder.parent / f"{folder.name}-files"
    files.mkdir(parents=True)
    folder.mkdir(parents=True)
    for name in names:
        (files / f"{name}.png").write_bytes(page(f"The town of {name}"))
    passages = [Passage(name, name.title(), f"Text of {name}", find_image(f"{name}.png", files)) for name in names]
    with StoreWriter(folder) as store:
        store.add(passages)
    return passages


def page_run(folder: Path, hits: list[Passage], index: Path) -> Path:
    """A finished evaluation in which each question found these pages."""
    with RunFolder(folder).claim(
        {"out": str(folder), **CONFIG, "retriever": {"kind": "hybrid", "parts": [str(index)]}}
    ):
        pass
    rows = [ScoredTrajectory(_with_hits(played(f"test-{i}", 1), hits), 1.0, {}) for i in range(2)]
    write_rows(folder / "trajectories.jsonl", rows)
    (folder / "metrics.json").write_text(json.dumps({"em": 1.0, "f1": 1.0, "n": 2}))
    return folder


def _with_hits(trajectory: Trajectory, passages: list[Passage]) -> Trajectory:
    hits = tuple(Hit(passage, 1 / rank, rank) for rank, passage in enumerate(passages, start=1))
    turns: list[Turn] = [
        replace(turn, hits=hits) if isinstance(turn.action, Search) else turn for turn in trajectory.turns
    ]
    return replace(trajectory, turns=tuple(turns))
