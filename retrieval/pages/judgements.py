"""Questions and judgements that come with a source go along with its pages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retrieval.pages.sources import vidore_id
from sleuth.files import PARQUET, parquet_rows, suffix_of

QUERIES, QRELS = "queries.jsonl", "qrels"


def copy_judgements(source: str | Path, out: Path) -> bool:
    """Copy a BEIR folder's queries and judgements to ``out``, or write those of ViDoRe's rows; whether there are any.

    Ids are those of the source, also of pages that are not there: a duplicate's, or a damaged page's.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    if path.is_file() and suffix_of(path) == PARQUET:
        return _of_vidore(path, out)
    if not ((folder / QUERIES).is_file() and (folder / QRELS).is_dir()):
        return False
    if path.is_file() and path.stem != "corpus":
        return False
    shutil.copyfile(folder / QUERIES, out / QUERIES)
    shutil.copytree(folder / QRELS, out / QRELS, dirs_exist_ok=True)
    return True


def _of_vidore(file: Path, out: Path) -> bool:
    """One judgement a row that has a query: rows with the same query share it."""
    queries: dict[str, str] = {}
    judged: list[tuple[str, str]] = []
    for row in parquet_rows(file):
        query, image = row.get("query"), row.get("image")
        data = image.get("bytes") if isinstance(image, Mapping) else None
        if isinstance(query, str) and query.strip() and isinstance(data, bytes):
            identifier = queries.setdefault(query, f"q{len(queries)}")
            judged.append((identifier, vidore_id(row, data)))
    if not judged:
        return False
    rows: list[dict[str, Any]] = [{"_id": identifier, "text": text} for text, identifier in queries.items()]
    (out / QUERIES).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    (out / QRELS).mkdir(exist_ok=True)
    lines = "".join(f"{query}\t{page}\t1\n" for query, page in dict.fromkeys(judged))
    (out / QRELS / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}", encoding="utf-8")
    return True
