"""A retriever of one's own: full-text search of SQLite over a table ``passages(id, title, text)``."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from sleuth.errors import RetrieverError
from sleuth.types import Hit, Passage

QUERY = (
    "SELECT id, title, text, bm25(passages) FROM passages WHERE passages MATCH ? ORDER BY bm25(passages), id LIMIT ?"
)


class SqliteRetriever:
    """Searches the FTS5 table ``passages`` of the database ``file``."""

    def __init__(self, file: str) -> None:
        stamp = Path(file).stat()
        self.fingerprint = f"sqlite:{file}:{stamp.st_size}:{stamp.st_mtime_ns}"
        self._database = sqlite3.connect(f"file:{file}?mode=ro", uri=True, check_same_thread=False)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        try:
            return [self._search(query, k) for query in queries]
        except sqlite3.Error as error:
            raise RetrieverError(f"SQLite could not search: {error}") from error

    def _search(self, query: str, k: int) -> list[Hit]:
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query))
        rows = self._database.execute(QUERY, (words, k)) if words else []
        return [
            Hit(Passage(identity, title, text), -score, rank)
            for rank, (identity, title, text, score) in enumerate(rows, start=1)
        ]
