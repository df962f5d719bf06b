"""Searches an index of encoded passages, of any family: encode the queries, search the index, read the passages."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.config import Role
from retrieval.encoders.family import Encoded, PassageEncoder
from retrieval.encoders.inputs import Input, Seen
from retrieval.encoders.modalities import check_queries
from retrieval.encoders.pieces import Passages
from retrieval.indexes import check_k, clean_query
from retrieval.store import PassageStore
from sleuth.errors import ArtifactError, ConfigError, DataError, RetrieverError
from sleuth.explanations import Explanation
from sleuth.protocols import Documents
from sleuth.query_forms import QueryForm, form_of
from sleuth.types import Hit, Image, Passage

BATCH = 64
"""Batch size for encoding queries."""
CPU_BATCH = 8
"""The same on a CPU, where small batches of similar length are cheaper than large padded ones."""

Scores = NDArray[np.float32]
Rows = NDArray[np.int64]
Found = tuple[Scores, Rows]
"""Scores [queries, k], best first, and rows [queries, k]; -inf and -1 where fewer were found."""


class EncodedIndex(Protocol):
    """Encoded passages by number, ready to be searched."""

    def __len__(self) -> int: ...

    def search(self, queries: Encoded, k: int) -> Found:
        """The ``k`` best rows of each query, ties by row. Raises RetrieverError for what cannot be compared."""
        ...


@runtime_checkable
class ExplainingIndex(Protocol):
    """An index whose scores are sums over terms or tokens."""

    def explain(self, encoder: PassageEncoder, query: str, passages: Sequence[Passage]) -> list[Explanation]:
        """What the score of each of ``passages``, which are in the index, is made of for ``query``."""
        ...


@runtime_checkable
class ReadsPictures(Protocol):
    """An encoder that takes pictures as queries, if its modalities say so."""

    def encode_inputs(self, inputs: Sequence[Input], role: Role, batch_size: int = 32) -> Encoded: ...


def _reads_pictures(encoder: PassageEncoder) -> bool:
    return isinstance(encoder, ReadsPictures) and "image" in encoder.modalities.query


class EncoderRetriever:
    """A retriever over one index and the encoder that made it. Thread-safe; encoding is serialised."""

    def __init__(
        self,
        encoder: PassageEncoder,
        index: EncodedIndex,
        passages: Passages,
        name: str,
        fingerprint: str,
        query_batch: int | None = None,
    ) -> None:
        """``name`` is the index's name in error messages; ``fingerprint`` covers passages, index and encoder."""
        if not _reads_pictures(encoder):
            check_queries(encoder.modalities, str(encoder.source))
        if len(index) != len(passages):
            raise ArtifactError(f"{name} has {len(index)} vectors for {len(passages)} passages", "they do not match")
        self.encoder = encoder
        self.index = index
        self.passages = passages
        self.name = name
        self._fingerprint = fingerprint
        self._batch = query_batch or (CPU_BATCH if encoder.device.type == "cpu" else BATCH)
        self._encoding = threading.Lock()

    def __len__(self) -> int:
        return len(self.passages)

    @property
    def fingerprint(self) -> str:
        """Digest of the passages, of how they were encoded and indexed, and of the query encoder."""
        return self._fingerprint

    @property
    def query_form(self) -> QueryForm:
        """The encoder's."""
        return form_of(self.encoder.settings)

    @property
    def takes_images(self) -> bool:
        """Whether the encoder reads pictures of queries."""
        return _reads_pictures(self.encoder)

    @property
    def documents(self) -> Documents | None:
        """Reads whole documents; None if the passages are lines of a corpus file, which ids do not find."""
        return self.passages if isinstance(self.passages, PassageStore) else None

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most ``k`` hits per query, best first, ties in corpus order; none for an empty query.

        Raises ConfigError if ``k`` is below 1 or the encoder reads pictures only, RetrieverError if a query could not
        be encoded.
        """
        check_queries(self.encoder.modalities, str(self.encoder.source))
        k = check_k(k, len(self), self.name)
        cleaned = [clean_query(query) for query in queries]
        asked = [place for place, query in enumerate(cleaned) if query]
        answers: list[list[Hit]] = [[] for _ in queries]
        if asked:
            scores, rows = self.index.search(self._encode([cleaned[place] for place in asked]), k)
            for place, one_scores, one_rows in zip(asked, scores.tolist(), rows.tolist(), strict=True):
                answers[place] = self._hits(one_scores, one_rows)
        return answers

    def search_images(self, images: Sequence[Image], k: int) -> list[list[Hit]]:
        """At most ``k`` hits for each picture, best first.

        Raises ConfigError if the encoder reads no pictures of queries, RetrieverError if one cannot be decoded.
        """
        k = check_k(k, len(self), self.name)
        encoder = self.encoder
        if not isinstance(encoder, ReadsPictures) or not _reads_pictures(encoder):
            raise ConfigError(f"{encoder.source} reads no pictures of queries", "ask in words")
        if not images:
            return []
        with self._encoding:
            try:
                asked = encoder.encode_inputs([Seen(image) for image in images], "query", self._batch)
            except DataError as error:
                raise RetrieverError(error.message, error.hint) from error
        scores, rows = self.index.search(asked, k)
        return [self._hits(*one) for one in zip(scores.tolist(), rows.tolist(), strict=True)]

    def explain(self, query: str, hits: Sequence[Hit]) -> list[Explanation]:
        """What the scores of ``hits`` are made of. Raises ConfigError for an index whose scores have no parts."""
        if not isinstance(self.index, ExplainingIndex):
            raise ConfigError(
                f"{self.name} is an index of kind {self.encoder.family.kind}, whose scores have no parts to show",
                "leave --explain out",
            )
        with self._encoding:
            return self.index.explain(self.encoder, clean_query(query), [hit.passage for hit in hits])

    def _encode(self, queries: list[str]) -> Encoded:
        with self._encoding:
            try:
                return self.encoder.encode_texts(queries, "query", self._batch)
            except DataError as error:
                raise RetrieverError(error.message, error.hint) from error

    def _hits(self, scores: list[float], rows: list[int]) -> list[Hit]:
        found = ((row, score) for row, score in zip(rows, scores, strict=True) if row >= 0)
        return [Hit(self.passages[row], score, rank) for rank, (row, score) in enumerate(found, start=1)]
