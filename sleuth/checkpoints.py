"""Complete checkpoints: a marker is written last, and a run resumes only from a checkpoint that has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from sleuth.artifacts import atomic_write

COMPLETE = "COMPLETE"


def mark_complete(checkpoint: Path) -> None:
    """Write the marker, which records the size of each file."""
    sizes = {p.name: p.stat().st_size for p in sorted(checkpoint.iterdir()) if p.is_file() and p.name != COMPLETE}
    atomic_write(checkpoint / COMPLETE, json.dumps(sizes, indent=2) + "\n")


def is_complete(checkpoint: Path) -> bool:
    """Whether the marker exists and every file it lists still has the recorded size."""
    try:
        sizes = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((checkpoint / n).is_file() and (checkpoint / n).stat().st_size == size for n, size in sizes.items())


def checkpoint_at(folder: str | Path, step: int) -> Path:
    """The checkpoint of ``step`` in ``folder``, named as transformers names it."""
    return Path(folder) / f"checkpoint-{step}"


def newest_complete(folder: Path) -> Path | None:
    """The complete checkpoint in ``folder`` with the highest step; None if there is none."""
    whole = [p for p in folder.glob("checkpoint-*") if p.name.rpartition("-")[2].isdigit() and is_complete(p)]
    return max(whole, key=checkpoint_step, default=None)


def checkpoint_step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def drop_incomplete(folder: Path) -> list[str]:
    """Delete checkpoints that a crash left half written, and return their names."""
    broken = [p for p in folder.glob("checkpoint-*") if not is_complete(p)]
    for path in broken:
        shutil.rmtree(path)
    return [p.name for p in broken]
