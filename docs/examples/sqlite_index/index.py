"""The index itself: a folder with a database and a manifest, made whole or not at all, and what searches it."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from retrieval.indexes import check_k
from retrieval.ingest import IngestReport, OnProgress, ingest
from retrieval.store import PassageStore, StoreWriter
from sleuth.artifacts import atomic_folder, read_manifest, write_manifest
from sleuth.types import Hit

FILE = "words.db"
FOUND = "SELECT rowid, bm25(words) FROM words WHERE words MATCH ? ORDER BY bm25(words), rowid LIMIT ?"


def build(corpus: Path, out: Path, tokenizer: str, on_progress: OnProgress | None = None) -> None:
    """Passages go to the store that all indexes share; row i of the database is passage i."""
    with atomic_folder(out) as folder, StoreWriter(folder) as store:
        database = sqlite3.connect(folder / FILE)
        database.execute(f"CREATE VIRTUAL TABLE words USING fts5(title, text, content='', tokenize={tokenizer})")
        for batch in ingest(corpus, store, IngestReport(), on_progress=on_progress):
            rows = [(len(store) - len(batch) + n, p.title, p.text) for n, p in enumerate(batch)]
            database.executemany("INSERT INTO words(rowid, title, text) VALUES (?, ?, ?)", rows)
        database.commit()
        database.close()
        write_manifest(folder, "sqlite", {"passages_sha256": store.digest, "tokenizer": tokenizer})


class SqliteIndex:
    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder, "sqlite", f"delete {folder}: it is made anew from its corpus")
        identity = f"{manifest['passages_sha256']} {manifest['tokenizer']}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()[:32]
        self._folder, self._store = folder, PassageStore(folder)
        self._database = sqlite3.connect(f"file:{folder / FILE}?mode=ro", uri=True, check_same_thread=False)

    def __len__(self) -> int:
        return len(self._store)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        k = check_k(k, len(self), self._folder)
        return [self._search(query, k) for query in queries]

    def _search(self, query: str, k: int) -> list[Hit]:
        words = " OR ".join(f'"{word}"' for word in re.findall(r"\w+", query))
        rows = self._database.execute(FOUND, (words, k)) if words else []
        return [Hit(self._store[row], -score, rank) for rank, (row, score) in enumerate(rows, start=1)]
