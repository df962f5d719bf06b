"""Searches an index of vectors for the passages nearest to a query."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval.dense.approximate import FILES
from retrieval.dense.build import FORMAT, KIND, rebuild_command
from retrieval.dense.search import FaissSearch, FlatSearch, Found, VectorSearch, read_faiss
from retrieval.dense.vectors import Vectors, open_vectors
from retrieval.encoders.build import describe_encoder
from retrieval.encoders.family import Encoded, PassageEncoder
from retrieval.encoders.modalities import check_index, check_queries
from retrieval.encoders.pieces import Passages
from retrieval.indexes import check_k, clean_query
from retrieval.store import PassageStore
from sleuth.artifacts import fingerprint_of, read_manifest
from sleuth.errors import ArtifactError, ConfigError, DataError, RetrieverError
from sleuth.protocols import Documents
from sleuth.settings import Settings
from sleuth.types import Hit, Passage

BATCH = 64
"""Batch size for encoding queries."""
CPU_BATCH = 8
"""The same on a CPU, where small batches of similar length are cheaper than large padded ones."""


_DECISIVE = (
    "passage_prompt",
    "pooling",
    "passage_max_tokens",
    "append_eos",
    "normalise",
    "similarity",
    "dimensions",
)


class DenseRetriever:
    """Encodes queries, searches vectors, reads passages. Thread-safe; encoding is serialised."""

    def __init__(
        self, encoder: PassageEncoder, vectors: VectorSearch, passages: Passages, name: str, fingerprint: str
    ) -> None:
        """``name`` is the index's name in error messages; ``fingerprint`` covers passages, vectors and encoder."""
        check_queries(encoder.modalities, str(encoder.source))
        if vectors.dimension != encoder.dimension:
            raise ArtifactError(
                f"the vectors of {name} have {vectors.dimension} dimensions, "
                f"those of the encoder {encoder.source} {encoder.dimension}",
                "open it with the encoder that made it",
            )
        if len(vectors) != len(passages):
            raise ArtifactError(f"{name} has {len(vectors)} vectors for {len(passages)} passages", "they do not match")
        self.encoder = encoder
        self.vectors = vectors
        self.passages = passages
        self.name = name
        self._fingerprint = fingerprint
        self._encoding = threading.Lock()

    def __len__(self) -> int:
        return len(self.passages)

    @property
    def fingerprint(self) -> str:
        """Digest of the passages, of how they were encoded and indexed, and of the query encoder."""
        return self._fingerprint

    @property
    def documents(self) -> Documents | None:
        """Reads whole documents; None if the passages are lines of a corpus file, which ids do not find."""
        return self.passages if isinstance(self.passages, PassageStore) else None

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most ``k`` hits per query, best first, ties in corpus order; none for an empty query.

        Raises ConfigError if ``k`` is below 1, RetrieverError if a query could not be encoded.
        """
        k = check_k(k, len(self), self.name)
        cleaned = [clean_query(query) for query in queries]
        asked = [place for place, query in enumerate(cleaned) if query]
        answers: list[list[Hit]] = [[] for _ in queries]
        if asked:
            scores, rows = self.search_vectors(self._encode([cleaned[place] for place in asked]), k)
            for place, one_scores, one_rows in zip(asked, scores.tolist(), rows.tolist(), strict=True):
                answers[place] = self._hits(one_scores, one_rows)
        return answers

    def search_vectors(self, vectors: Vectors, k: int) -> Found:
        """Scores and rows [queries, k] for query vectors. Raises RetrieverError for a wrong dimension or NaN."""
        if vectors.ndim != 2 or vectors.shape[1] != self.vectors.dimension:
            raise RetrieverError(
                f"query vectors of shape {tuple(vectors.shape)} do not fit {self.name}",
                f"its vectors have {self.vectors.dimension} dimensions",
            )
        if not np.isfinite(vectors).all():
            raise RetrieverError(f"a query vector for {self.name} is not finite (NaN)", "check the encoder's weights")
        scores, rows = self.vectors.search(np.ascontiguousarray(vectors, dtype=np.float32), k)
        if np.isnan(scores).any():
            row = int(rows[np.isnan(scores)][0])
            raise RetrieverError(f"vector {row} of {self.name} is not finite (NaN)", "the index is damaged: rebuild it")
        return scores, rows

    def _encode(self, queries: list[str]) -> Vectors:
        batch = CPU_BATCH if self.encoder.device.type == "cpu" else BATCH
        with self._encoding:
            try:
                return self.encoder.encode_texts(queries, "query", batch).values.numpy()
            except DataError as error:
                raise RetrieverError(error.message, error.hint) from error

    def _hits(self, scores: list[float], rows: list[int]) -> list[Hit]:
        found = ((row, score) for row, score in zip(rows, scores, strict=True) if row >= 0)
        return [Hit(self.passages[row], score, rank) for rank, (row, score) in enumerate(found, start=1)]


def open_dense(
    index: str | Path, encoder: PassageEncoder, *, ef_search: int | None = None, nprobe: int | None = None
) -> DenseRetriever:
    """The retriever over an index made by `build_dense`, with the encoder that made it.

    A different query tower is accepted; a different passage tower, prompt or pooling raises ArtifactError.
    """
    manifest = read_dense_manifest(index)
    _check_encoder(index, manifest, encoder)
    _check_files(index, manifest)
    if manifest["index_type"] == "flat":
        tuned = "ef_search" if ef_search is not None else "nprobe" if nprobe is not None else None
        if tuned:
            raise ConfigError(f"{tuned} does not apply to {index}, an index of type flat", f"leave {tuned} out")
        search: VectorSearch = FlatSearch(open_vectors(index))
    else:
        path = Path(index) / FILES[manifest["index_type"]]
        search = FaissSearch(read_faiss(path), ef_search=ef_search, nprobe=nprobe)
    keys = ("kind", "format", "passages_sha256", "index_type", "dtype", "parameters", "indexed")
    identity: dict[str, Any] = {key: manifest[key] for key in keys}
    identity |= {"encoder": encoder.fingerprint, "ef_search": ef_search, "nprobe": nprobe}
    return DenseRetriever(encoder, search, PassageStore(index), str(index), fingerprint_of(identity))


def stored_vectors(index: str | Path, encoder: PassageEncoder) -> tuple[list[Passage], Encoded]:
    """The passages of a flat index and their vectors, which must be those of ``encoder``.

    Raises ArtifactError if the index is from another passage tower, ConfigError if it keeps no vectors.
    """
    kind = read_dense_manifest(index)["index_type"]
    if kind != "flat":
        raise ConfigError(f"{index} is of type {kind}, which keeps no vectors", "use a flat index")
    found = open_dense(index, encoder)
    vectors = open_vectors(index).read(slice(None))
    return [found.passages[row] for row in range(len(found))], Encoded(torch.from_numpy(vectors))


def read_dense_manifest(index: str | Path) -> dict[str, Any]:
    """The manifest of a dense index. Raises ArtifactError if there is none or it has another format."""
    manifest = read_manifest(index, KIND, rebuild_command(index))
    if manifest.get("format") != FORMAT:
        raise ArtifactError(
            f"{index} has format {manifest.get('format')}, this version reads {FORMAT}",
            f"rebuild it with: {rebuild_command(index)}",
        )
    return manifest


def _check_encoder(index: str | Path, manifest: Mapping[str, Any], encoder: PassageEncoder) -> None:
    check_index(str(index), manifest.get("modalities", ["text"]), encoder.modalities, str(encoder.source))
    made_with = manifest["encoder"]
    if encoder.tower_fingerprint("passage") == made_with["passage_fingerprint"]:
        return
    given = describe_encoder(encoder)
    raise ArtifactError(
        f"{index} was made with another encoder than {encoder.source or 'this one'}: "
        f"{_difference(made_with['settings'], encoder.settings)}",
        f"open it with {made_with['source'] or 'the encoder that made it'}, or rebuild it with: "
        f"{rebuild_command(index, manifest['corpus']['path'], given['source'] or 'ENCODER', manifest)}",
    )


def _difference(made_with: Mapping[str, Any], settings: Settings) -> str:
    """The first differing setting that affects passage vectors; if none differs, it is the weights."""
    for name in _DECISIVE:
        mine, theirs = getattr(settings, name, None), made_with.get(name)
        if mine != theirs:
            return f"its {name} is {mine!r}, the index has {theirs!r}"
    return "its weights or its tokenizer differ"


def _check_files(index: str | Path, manifest: Mapping[str, Any]) -> None:
    for name, size in manifest["files"].items():
        path = Path(index) / name
        found = path.stat().st_size if path.is_file() else 0
        if found != size:
            corpus, source = manifest["corpus"]["path"], manifest["encoder"]["source"] or "ENCODER"
            raise ArtifactError(
                f"{path} is truncated: {found:,} of {size:,} bytes",
                f"rebuild the index with: {rebuild_command(index, corpus, source, manifest)}",
            )
