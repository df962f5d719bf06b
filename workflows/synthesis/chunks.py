"""What came of a chunk of units, as it is kept on disk, and as rows of the files that are published."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from retrieval.training.row_layouts import row_of, tevatron_row
from sleuth.layout import read_record, write_record
from workflows.synthesis.journal import About, Cost
from workflows.synthesis.layout import ChunkLayout
from workflows.synthesis.writing import Reject, Written


@dataclass(slots=True)
class Chunk:
    """``passed``: rows that reached each filter and that it let through, in order."""

    about: About
    kept: list[Written]
    rejects: list[Reject]
    passed: list[tuple[int, int]]
    cost: Cost
    seconds: float


def save_chunk(chunk: Chunk, place: ChunkLayout) -> None:
    write_record(
        place.done,
        {
            "about": asdict(chunk.about),
            "kept": [plain_row(row) for row in chunk.kept],
            "rejects": [plain_reject(reject) for reject in chunk.rejects],
            "passed": chunk.passed,
            "cost": asdict(chunk.cost),
            "seconds": chunk.seconds,
        },
    )


def read_chunk(place: ChunkLayout, about: About) -> Chunk | None:
    """What came of a chunk; None if it is not done, was of fewer or more units, or filtered by something else.

    Raises ArtifactError if its file is damaged, or if it was written about something else than ``about``.
    """
    found = read_record(place.done)
    if found is None:
        return None
    about.check(found.get("about"), place.done)
    before = found["about"]
    if len(before["units"]) != len(about.units) or before.get("filters") != about.filters:
        return None  # the last one grows with the limit, dev and test sets come and go; the replies are kept
    return Chunk(
        about,
        [_written(row) for row in found["kept"]],
        [_reject(one) for one in found["rejects"]],
        [(came, went) for came, went in found["passed"]],
        Cost(**found["cost"]),
        found["seconds"],
    )


def plain_row(written: Written) -> dict[str, Any]:
    """A Tevatron row, with how it was made."""
    return {**tevatron_row(written.row), "made": dict(written.made)}


def plain_reject(reject: Reject) -> dict[str, Any]:
    row = {} if reject.written is None else {"row": plain_row(reject.written)}
    text = {"text": reject.text} if reject.text else {}
    return {"id": reject.id, "by": reject.by, "reason": reject.reason, **text, **row}


def _written(plain: Mapping[str, Any]) -> Written:
    return Written(row_of(plain), plain["made"])


def _reject(plain: Mapping[str, Any]) -> Reject:
    written = _written(plain["row"]) if "row" in plain else None
    return Reject(plain["id"], plain["by"], plain["reason"], plain.get("text", ""), written)
