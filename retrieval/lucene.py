"""Opens an existing Lucene index, which must contain the raw documents (Anserini's ``-storeRaw``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from retrieval.bm25 import K1, B, check_parameters, lucene_searcher
from retrieval.corpus import parse_line
from retrieval.indexes import check_k, clean_query
from retrieval.jvm import java_calls
from sleuth.artifacts import fingerprint_of
from sleuth.errors import ArtifactError, RetrieverError, first_line
from sleuth.types import Hit, Passage


class LuceneRetriever:
    """BM25 over an index written by pyserini or Anserini; the passages are its raw documents."""

    def __init__(
        self, folder: str | Path, *, k1: float | None = None, b: float | None = None, threads: int = 2
    ) -> None:
        self.folder = Path(folder)
        self.k1, self.b = K1 if k1 is None else k1, B if b is None else b
        check_parameters(self.k1, self.b, threads)
        if not self.folder.is_dir() or not any(self.folder.glob("segments_*")):
            raise ArtifactError(
                f"{folder} is not a Lucene index: it has no segments file", "give the folder that contains one"
            )
        self._threads = threads
        self._searcher = lucene_searcher(self.folder, "fetch the index again")
        with java_calls():
            self._searcher.set_bm25(self.k1, self.b)
        self._count = int(self._searcher.num_docs)
        self._check_raw()

    def __len__(self) -> int:
        return self._count

    @property
    def fingerprint(self) -> str:
        """Digest of the index's files by name and size, and of k1 and b."""
        files = sorted((path.name, path.stat().st_size) for path in self.folder.iterdir() if path.is_file())
        return fingerprint_of([files, self.k1, self.b])

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most ``k`` hits per query, best first; none for an empty query. Raises ConfigError, RetrieverError."""
        k = check_k(k, len(self), self.folder)
        try:
            with java_calls():
                found = [self._search_one(clean_query(query), k) for query in queries]
        except Exception as error:  # errors from the Java bridge have no common type
            raise RetrieverError(f"Lucene could not search {self.folder}: {first_line(error)}") from error
        return [
            [Hit(self._passage(raw, docid), score, rank) for rank, (docid, score, raw) in enumerate(hits, start=1)]
            for hits in found
        ]

    def _search_one(self, query: str, k: int) -> list[tuple[str, float, str | None]]:
        if not query:
            return []
        hits = self._searcher.object.search(query, k)
        return [(hit.docid, hit.score, hit.lucene_document.get("raw")) for hit in hits]

    def _passage(self, raw: str | None, docid: str) -> Passage:
        if raw is None:
            raise RetrieverError(f"{self.folder} has no raw document {docid}")
        passage = parse_line(raw.encode("utf-8", "replace"), self.folder, 0, images=False)
        return replace(passage, id=docid)

    def _check_raw(self) -> None:
        with java_calls():
            first: Any = self._searcher.doc(0) if self._count else None
            raw = first.raw() if first is not None else None
        if raw is None:
            raise ArtifactError(
                f"{self.folder} has no raw documents, so there are no passages to show the policy",
                "build it with Anserini's -storeRaw, or index the corpus: sleuth index CORPUS --out FOLDER",
            )
