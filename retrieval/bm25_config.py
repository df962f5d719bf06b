"""BM25 over an index of Sleuth's own: its settings, and how they are opened."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from retrieval.config import Count, IndexedSettings, NotNegative, Progress
from retrieval.languages import Language
from sleuth.errors import ConfigError
from sleuth.protocols import Retriever


class BM25Settings(IndexedSettings):
    kind: Literal["bm25"] = "bm25"
    k1: NotNegative | None = None
    """Term saturation; None: as the index was built."""
    b: Annotated[float, Field(ge=0, le=1)] | None = None
    """Length normalisation; None: as the index was built."""
    language: Language | None = None
    """Of the passages, which says how words are told apart and stemmed; None: as the index was built, else English."""
    threads: Count = 2
    """1 searches query by query; more lets a batch run in parallel."""

    @field_validator("language", mode="before")
    @classmethod
    def _norwegian(cls, value: object) -> object:
        """YAML reads a bare ``no`` as false."""
        return "no" if value is False else value

    def open(self, progress: Progress, /) -> Retriever:
        from retrieval.bm25 import ENGLISH, K1, B, BM25Retriever, build_bm25, rebuild_command
        from retrieval.ingest import check_source
        from retrieval.windows_config import source_named

        corpus = self.to_be_made_from()
        if corpus is not None:
            k1, b = K1 if self.k1 is None else self.k1, B if self.b is None else self.b
            with progress(f"indexing {corpus}") as on_progress:
                build_bm25(
                    corpus,
                    self.index,
                    k1=k1,
                    b=b,
                    language=self.language or ENGLISH,
                    threads=self.threads,
                    window=self.window,
                    skip_bad_rows=self.skip_bad_rows,
                    on_progress=on_progress,
                )
        retriever = BM25Retriever(self.index, k1=self.k1, b=self.b, threads=self.threads)
        if self.language not in (None, retriever.language):
            source = source_named(retriever.manifest["corpus"])
            raise ConfigError(
                f"{self.index} is of the language {retriever.language}, not {self.language}",
                f"leave language out, or rebuild it with: {rebuild_command(self.index, source, self.language)}",
            )
        check_source(
            self.index,
            retriever.manifest["corpus"],
            self.corpus,
            self.window,
            lambda source: rebuild_command(self.index, source, retriever.language),
        )
        return retriever
