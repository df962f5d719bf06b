"""Its settings, and how they are opened. Loads without SQLite, as every config.py loads without what it configures."""

from __future__ import annotations

from typing import Literal

from retrieval.config import IndexedSettings, Progress
from sleuth.protocols import Retriever


class SqliteSettings(IndexedSettings):
    """``index`` and ``corpus`` are those of every kind that has an index; patience and cache are those of all kinds."""

    kind: Literal["sqlite"] = "sqlite"
    tokenizer: Literal["porter", "unicode61", "trigram"] = "porter"
    """How an index that does not exist yet cuts text into words."""

    def open(self, progress: Progress, /) -> Retriever:
        from sqlite_index.index import SqliteIndex, build

        corpus = self.to_be_made_from()
        if corpus is not None:
            with progress(f"indexing {corpus}") as on_progress:
                build(corpus, self.index, self.tokenizer, on_progress)
        return SqliteIndex(self.index)
