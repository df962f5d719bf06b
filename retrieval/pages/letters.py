"""Where each letter of a page stands: supervision of a reader that is trained from scratch.

``letters.jsonl`` beside a corpus has a row a picture::

    {"image": "images/p0.png", "sha256": "...", "size": [512, 720],
     "lines": [{"text": "Oslo", "x": [4, 12, 20, 28], "y": 8}]}

``x`` and ``y`` are the middles of the letters in pixels, ``size`` is the picture's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sleuth.errors import DataError

LETTERS = "letters.jsonl"


@dataclass(frozen=True, slots=True)
class Line:
    """Letters at one height; ``x`` has one place a letter."""

    text: str
    x: tuple[int, ...]
    y: int


@dataclass(frozen=True, slots=True)
class Lettering:
    """What is written on a picture of ``size`` (width, height)."""

    size: tuple[int, int]
    lines: tuple[Line, ...]


def letters_row(image: str, sha256: str, written: Lettering) -> dict[str, Any]:
    """A row of ``letters.jsonl``."""
    lines = [{"text": line.text, "x": list(line.x), "y": line.y} for line in written.lines]
    return {"image": image, "sha256": sha256, "size": list(written.size), "lines": lines}


class LetterPlaces:
    """What is written on each page, by the SHA-256 of its picture; a page is parsed when it is asked for."""

    def __init__(self, path: str | Path) -> None:
        """Raises DataError if ``path`` cannot be read."""
        self._path = Path(path)
        self._rows: dict[str, bytes] = {}
        try:
            with self._path.open("rb") as file:
                for number, row in enumerate(file, start=1):
                    self._rows[self._digest(row, number)] = row
        except OSError as error:
            raise DataError(
                f"cannot read the places of letters {path}: {error.strerror or error}",
                "sleuth pages writes them beside a corpus that it renders",
            ) from None

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, sha256: str) -> bool:
        return sha256 in self._rows

    def of(self, sha256: str) -> Lettering:
        """Raises DataError for a damaged row, KeyError for an unknown picture."""
        row = self._rows[sha256]
        try:
            content = json.loads(row)
            width, height = content["size"]
            lines = (Line(line["text"], tuple(line["x"]), line["y"]) for line in content["lines"])
            return Lettering((width, height), tuple(lines))
        except (ValueError, KeyError, TypeError):
            raise DataError(f"the letters of the picture {sha256[:12]} in {self._path} are damaged") from None

    def _digest(self, row: bytes, number: int) -> str:
        try:
            return str(json.loads(row)["sha256"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{self._path}:{number}: no row of letters", "make the corpus of pages anew") from None
