"""Question files: FlashRAG jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from sleuth.errors import DataError
from sleuth.types import Question


def load_questions(path: str, *, limit: int | None = None) -> list[Question]:
    if not Path(path).is_file():
        raise DataError(f"no question file {path}")
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    return [
        Question(
            row["id"],
            row["question"],
            tuple(row["golden_answers"]),
            tuple(row.get("metadata", {}).get("supporting_titles", ())),
            row.get("metadata", {}).get("type", ""),
        )
        for row in rows[:limit]
    ]
