"""Lucene's BM25 through pyserini: build an index folder, and search it.

An index is ``lucene/`` (term statistics only), the passage store next to it, and a manifest. k1 and b
apply at search time, so one index serves any values; the manifest records the defaults.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from retrieval.indexes import IndexInfo, check_k, clean_query
from retrieval.ingest import IngestReport, OnProgress, describe_source, ingest
from retrieval.jvm import import_on_jvm, java_calls, java_class
from retrieval.languages import Language
from retrieval.store import PassageStore, StoreWriter
from retrieval.windows_config import WindowSettings, source_named
from sleuth.artifacts import atomic_folder, fingerprint_of, read_manifest, write_manifest
from sleuth.errors import ArtifactError, ConfigError, DataError, RetrieverError, first_line
from sleuth.types import Hit, Passage

KIND = "bm25"
FORMAT = 1
K1 = 0.9
B = 0.4
ENGLISH = "en"

_LUCENE = "lucene"
_ANALYZER = "anserini DefaultEnglishAnalyzer (Porter stemming, Lucene's English stop words)"
_FLUSH_CHARACTERS = 128_000_000
_ALL_CLAUSES = 2**31 - 1


def rebuild_command(index: str | Path, corpus: str | Path = "CORPUS", language: str = ENGLISH) -> str:
    of_language = "" if language == ENGLISH else f" --language {language}"
    return f"sleuth index {corpus} --out {index} --kind {KIND}{of_language} --overwrite"


def build_bm25(
    corpus_path: str | Path,
    out: str | Path,
    *,
    k1: float = K1,
    b: float = B,
    language: str = ENGLISH,
    threads: int = 2,
    layout: str | None = None,
    window: WindowSettings | None = None,
    skip_bad_rows: bool = False,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> IndexInfo:
    """Index title and text of every passage of ``corpus_path``, or its windows, into the folder ``out``, atomically.

    ``language``: of the passages, one of ``retrieval.languages.Language``. Raises DataError naming the bad rows unless
    ``skip_bad_rows``, ArtifactError if ``out`` exists, ConfigError for parameters out of range.
    """
    check_parameters(k1, b, threads, language)
    report = IngestReport()
    with atomic_folder(out, overwrite=overwrite) as folder:
        with StoreWriter(folder) as store:
            batches = ingest(
                corpus_path,
                store,
                report,
                layout=layout,
                window=window,
                skip_bad_rows=skip_bad_rows,
                on_progress=on_progress,
            )
            writer = _LuceneWriter(folder / _LUCENE, threads, language)
            try:
                for batch in batches:
                    _check_text(batch)
                    writer.add(batch)
            finally:
                writer.close()
        indexed = lucene_searcher(folder / _LUCENE).num_docs
        if indexed != len(store):  # Lucene only logs failed writes
            raise ArtifactError(f"Lucene kept {indexed} of {len(store)} passages", "is the disk full?")
        write_manifest(
            folder,
            KIND,
            {
                "format": FORMAT,
                "passages": len(store),
                "passages_sha256": store.digest,
                "skipped": dict(report.skipped),
                "k1": k1,
                "b": b,
                "analyzer": _ANALYZER if language == ENGLISH else f"Lucene's for the language {language}",
                "language": language,
                "indexed": "title + ' ' + text",
                "corpus": describe_source(corpus_path, window),
            },
        )
    whole = None if window is None else report.whole
    return IndexInfo(Path(out), len(store), dict(report.skipped), tuple(report.examples), whole)


def _check_text(passages: Sequence[Passage]) -> None:
    without = next((p for p in passages if not (p.title + p.text).strip()), None)
    if without is not None:
        raise DataError(
            f"passage {without.id} has only a picture, which BM25 cannot search",
            "give it a text, or use --kind dense with an encoder that reads pictures",
        )


class BM25Retriever:
    """Searches an index made by `build_bm25`. Thread-safe; concurrent searches are serialised.

    ``k1`` and ``b`` default to the manifest's values. ``threads`` above 1 lets Lucene search a batch in
    parallel (pyserini 1.6 then uses all processors, whatever the number).
    """

    def __init__(self, index: str | Path, *, k1: float | None = None, b: float | None = None, threads: int = 2) -> None:
        self.manifest = read_manifest(index, KIND, rebuild_command(index))
        self.language: str = self.manifest.get("language", ENGLISH)  # indexes made before there was a choice
        if self.manifest.get("format") != FORMAT:
            raise ArtifactError(
                f"{index} has format {self.manifest.get('format')}, this version reads {FORMAT}",
                f"rebuild it with: {rebuild_command(index, language=self.language)}",
            )
        again = rebuild_command(index, source_named(self.manifest["corpus"]), self.language)
        self.k1: float = self.manifest["k1"] if k1 is None else k1
        self.b: float = self.manifest["b"] if b is None else b
        check_parameters(self.k1, self.b, threads, self.language)
        self.index = Path(index)
        self.store = PassageStore(index)
        self._threads = threads
        self._searcher = lucene_searcher(self.index / _LUCENE, f"rebuild it with: {again}")
        if not len(self.store) == self._searcher.num_docs == self.manifest["passages"]:
            raise ArtifactError(f"{index} is incomplete", f"rebuild it with: {again}")
        with java_calls():
            self._searcher.set_bm25(self.k1, self.b)
            if self.language != ENGLISH:
                self._searcher.set_language(self.language)
        self._process = os.getpid()
        self._fingerprint = self._identify()

    def __len__(self) -> int:
        return len(self.store)

    @property
    def fingerprint(self) -> str:
        """Digest of the passages, how they were indexed, and k1 and b."""
        return self._fingerprint

    @property
    def documents(self) -> PassageStore:
        return self.store

    def _identify(self) -> str:
        identity = {key: self.manifest[key] for key in ("kind", "format", "passages_sha256", "analyzer", "indexed")}
        identity |= {"pyserini": self.manifest["versions"].get("pyserini"), "k1": self.k1, "b": self.b}
        return fingerprint_of(identity)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most ``k`` hits per query, best first, ties in order of id; none for an empty query.

        Raises ConfigError if ``k`` is below 1, RetrieverError if Lucene fails.
        """
        k = check_k(k, len(self), self.index)
        if os.getpid() != self._process:
            raise RetrieverError(f"{self.index} was opened before this process was forked", "start workers with spawn")
        try:
            with java_calls():
                answers = self._search_lucene([clean_query(query) for query in queries], k)
            return self._to_hits(answers)
        except Exception as error:  # errors from the Java bridge have no common type
            raise RetrieverError(f"Lucene could not search {self.index}: {first_line(error)}") from error

    def _search_lucene(self, queries: list[str], k: int) -> list[list[tuple[str, float]]]:
        if len(queries) == 1 or self._threads == 1:
            # the Java object itself: the wrapper's loop over the hits takes as long as reading the passages
            answers = [self._searcher.object.search(query, k) if query else [] for query in queries]
        else:
            asked = {str(position): query for position, query in enumerate(queries) if query}
            found = self._searcher.batch_search(list(asked.values()), list(asked), k, self._threads) if asked else {}
            answers = [found.get(str(position), []) for position in range(len(queries))]
        return [[(hit.docid, hit.score) for hit in answer] for answer in answers]

    def _to_hits(self, answers: list[list[tuple[str, float]]]) -> list[list[Hit]]:
        passages = iter(self.store.get_many([identifier for answer in answers for identifier, _ in answer]))
        return [
            [Hit(self._known(next(passages), identifier), score, rank) for rank, (identifier, score) in ranked]
            for ranked in (enumerate(answer, start=1) for answer in answers)
        ]

    def _known(self, passage: Passage | None, identifier: str) -> Passage:
        if passage is None:
            raise ArtifactError(f"the index has a passage {identifier!r} that its store lacks")
        return passage


def check_parameters(k1: float, b: float, threads: int, language: str = ENGLISH) -> None:
    """Raise ConfigError for invalid BM25 parameters."""
    if language not in get_args(Language):
        known = ", ".join(get_args(Language))
        raise ConfigError(f"BM25 has no analyser for the language '{language}'", f"it has some for {known}")
    if not (math.isfinite(k1) and k1 >= 0):
        raise ConfigError(f"k1 is {k1}, it must be 0 or more", f"{K1} is Anserini's default")
    if not 0 <= b <= 1:
        raise ConfigError(f"b is {b}, it must be between 0 and 1", f"{B} is Anserini's default")
    if threads < 1:
        raise ConfigError(f"threads is {threads}, it must be 1 or more")


class _LuceneWriter:
    """Adds passages to a Lucene index. Its 2 GB buffer would outgrow the heap, so it is closed,
    which flushes it, and reopened in time."""

    def __init__(self, folder: Path, threads: int, language: str) -> None:
        self._folder = str(folder.absolute())
        self._threads = threads
        self._language = language
        self._indexer: Any = None
        self._buffered = 0
        self._make = import_on_jvm("pyserini.index.lucene").LuceneIndexer

    def add(self, passages: Sequence[Passage]) -> None:
        if not passages:
            return
        rows = [{"id": p.id, "contents": f"{p.title} {p.text}" if p.title else p.text} for p in passages]
        with java_calls():
            if self._indexer is None:
                self._indexer = self._open()
            self._indexer.add_batch_dict(rows)
        self._buffered += sum(len(row["contents"]) for row in rows)
        if self._buffered >= _FLUSH_CHARACTERS:
            self.close()

    def _open(self) -> Any:
        append = Path(self._folder).exists()
        if self._language == ENGLISH:
            return self._make(self._folder, append=append, threads=self._threads)
        arguments = ["-index", self._folder, "-language", self._language]
        return self._make(args=arguments, append=append, threads=self._threads)

    def close(self) -> None:
        if self._indexer is not None:
            with java_calls():
                self._indexer.close()
        self._indexer = None
        self._buffered = 0


def lucene_searcher(folder: Path, hint: str | None = None) -> Any:
    """pyserini's searcher over a Lucene folder. Raises ArtifactError with ``hint``, or how to rebuild our index."""
    searcher = import_on_jvm("pyserini.search.lucene").LuceneSearcher
    try:
        with java_calls():
            java_class("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(_ALL_CLAUSES)  # long queries too
            return searcher(str(folder.absolute()))  # Java keeps the working directory it was started in
    except Exception as error:  # see BM25Retriever.search
        raise ArtifactError(
            f"Lucene cannot open {folder}: {first_line(error)}",
            hint or f"rebuild it with: {rebuild_command(folder.parent)}",
        ) from error
