"""What comes home from the machine with the GPU: one summary and one archive, within a limit on their size.

``summary.json`` has every stage's state, seconds and figures. ``files.tar.gz`` has the logs and the run's own records,
metrics, config, evaluations and trajectories, the smallest files first, as far as they fit. Weights never come.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

from benchmarks.gpu.budget import Ledger
from benchmarks.gpu.work import Work
from sleuth.artifacts import atomic_write
from sleuth.errors import ArtifactError
from sleuth.layout import RunLayout, read_record

TRAIN = "train"
SUMMARY, FILES = "summary.json", "files.tar.gz"
_HEAVY = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".npy", ".lock"}
"""Ends of the names of weights, optimizer states and vectors."""
_NOT_HOME = {"checkpoints", "policy", "tokenizer.json"}
"""Folders and files that are of use with weights alone."""


def bring_home(work: Work, ledger: Ledger, out: Path, limit: int) -> str:
    """Write both files to ``out``, of at most ``limit`` bytes together; returns one line on what they are.

    Raises ArtifactError if the summary alone is larger.
    """
    out.mkdir(parents=True, exist_ok=True)
    summary = json.dumps(_summary(work, ledger), indent=1) + "\n"
    room = limit - len(summary.encode("utf-8"))
    if room < 0:
        raise ArtifactError(
            f"the summary has {len(summary):,} characters, and {limit:,} bytes may come home", "raise --mib"
        )
    packed, left_out = _packed(work.folder, _wanted(work), room)
    atomic_write(out / SUMMARY, summary)
    (out / f".{FILES}").write_bytes(packed)
    (out / f".{FILES}").replace(out / FILES)
    size = (len(summary) + len(packed)) / 2**20
    return f"{size:.2f} MiB in {out}" + (f" ({left_out} files did not fit)" if left_out else "")


def _summary(work: Work, ledger: Ledger) -> dict[str, Any]:
    stages: dict[str, Any] = {}
    for name, spent in ledger.spent.items():
        stages[name] = {
            "state": spent.state,
            "why": spent.why,
            "seconds": round(spent.seconds, 1),
            "attempts": spent.attempts,
        }
        whole = read_record(work.stages / f"{name}.json")
        so_far = read_record(work.stages / f"{name}.parts.json") if whole is None else None
        stages[name] |= {key: value for key, value in (("figures", whole), ("so_far", so_far)) if value is not None}
        if name == TRAIN and (row := _last_row(RunLayout(work.run).metrics)):
            stages[name]["last_row"] = row
    return {"minutes": round(ledger.total / 60, 2), "stages": stages}


def _last_row(metrics: Path) -> dict[str, Any] | None:
    """The last whole row of a file that may still be written to."""
    lines = metrics.read_bytes().split(b"\n")[:-1] if metrics.is_file() else []
    row: dict[str, Any] | None = json.loads(lines[-1]) if lines else None
    return row


def _wanted(work: Work) -> list[Path]:
    """Logs and records, the smallest first."""
    found = [path for folder in (work.stages, work.run) for path in folder.rglob("*") if path.is_file()]
    light = [
        path
        for path in found
        if path.suffix not in _HEAVY
        and not path.name.startswith(".")
        and _NOT_HOME.isdisjoint(path.relative_to(work.folder).parts)
    ]
    return sorted(light, key=lambda path: (path.stat().st_size, path))


def _packed(root: Path, paths: list[Path], room: int) -> tuple[bytes, int]:
    """An archive of as many of the paths as fit, and how many do not; nothing at all where none fits."""
    count = len(paths)
    while count:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path in paths[:count]:
                archive.add(path, path.relative_to(root).as_posix(), recursive=False)
        if len(buffer.getvalue()) <= room:
            return buffer.getvalue(), len(paths) - count
        count = count * 9 // 10  # what is left out first is the largest
    return b"", len(paths)
