"""Search for the largest inner products: exact over stored vectors, or through a faiss index file.

Exact search uses faiss for a few queries and blockwise matrix products with top-k for more, whichever is faster
(benchmarks/dense.py); float16 and int8 are decoded block by block. The scores of the hits are then recomputed in
float64, so that they and the order of ties (by row) depend neither on the method nor on the other queries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.dense.vectors import StoredVectors, Vectors
from retrieval.encoders.retriever import Found, Rows
from sleuth.errors import ArtifactError, ConfigError, RetrieverError, first_line, last_line

FAISS_QUERIES = 5
"""Up to this many queries, faiss's scan beats a matrix product."""
BLOCK_BYTES = 16_000_000
"""Block size for vectors that need decoding: small enough for the CPU caches, large enough for a matrix product."""
PLAIN_BLOCK_BYTES = 64_000_000
"""Block size for float32 vectors, which need no decoding."""

_SLACK = 1e-5
"""Relative difference within which float32 scores cannot tell an order."""
_SPARE = 8
"""Candidates beyond ``k``. Only if all of them are that close to the last place can a row outside belong to the first
``k``; random vectors are that close one by one, copies of a passage in numbers."""


class VectorSearch(Protocol):
    """A searchable set of vectors."""

    def __len__(self) -> int: ...

    @property
    def dimension(self) -> int: ...

    def search(self, queries: Vectors, k: int) -> Found:
        """The ``k`` rows with the largest inner product with each of ``queries`` [queries, dimension]."""
        ...


class FlatSearch:
    """Exact search; memory beyond the mapped file is one block, regardless of corpus size."""

    def __init__(self, vectors: StoredVectors, owner: object = None) -> None:
        """``owner`` is kept alive, since it may own the memory of ``vectors``."""
        self.vectors = vectors
        self._owner = owner
        size = PLAIN_BLOCK_BYTES if vectors.codes.dtype == np.float32 else BLOCK_BYTES
        self._block = max(256, size // (4 * vectors.dimension))

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        return self.vectors.dimension

    def search(self, queries: Vectors, k: int) -> Found:
        scores, rows = self.ranked(queries, k)
        return scores.astype(np.float32), rows

    def ranked(self, queries: Vectors, k: int) -> tuple[NDArray[np.float64], Rows]:
        """Like `search`, with the float64 scores that determined the order."""
        asked = min(k + _SPARE, len(self))
        candidates = self._candidates(queries, asked)
        scores, rows = self._rescored(queries, candidates)
        if k < asked < len(self):
            tied = np.flatnonzero(scores[:, k - 1] - scores[:, -1] <= _SLACK * np.abs(scores[:, -1]))
            if len(tied):
                self._settle(queries[tied], scores, rows, tied, k)
        return scores[:, :k], rows[:, :k]

    def _candidates(self, queries: Vectors, k: int) -> Rows:
        if len(queries) <= FAISS_QUERIES and self.vectors.codes.dtype == np.float32:
            rows: Rows = faiss.knn(queries, self.vectors.codes, k, metric=faiss.METRIC_INNER_PRODUCT)[1]
            if (rows >= 0).all():  # faiss skips vectors that are not finite
                return rows
        asked = torch.from_numpy(queries)
        best, rows_ = torch.empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64)
        for start in range(0, len(self), self._block):
            block = torch.from_numpy(self.vectors.read(slice(start, start + self._block)))
            scores, places = torch.topk(asked @ block.T, min(k, len(block)))
            best, rows_ = torch.cat([best, scores], 1), torch.cat([rows_, places + start], 1)
            if best.shape[1] > k:
                best, kept = torch.topk(best, k)
                rows_ = rows_.gather(1, kept)
        return rows_.numpy()

    def _rescored(self, queries: Vectors, rows: Rows) -> tuple[NDArray[np.float64], Rows]:
        """Scores in float64 of ``rows`` [queries, n], both sorted by score, then by row."""
        vectors = self.vectors.read(rows.reshape(-1)).reshape(*rows.shape, -1)
        scores = np.einsum("qd,qnd->qn", queries, vectors, dtype=np.float64)
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def _settle(self, queries: Vectors, scores: NDArray[np.float64], rows: Rows, tied: Rows, k: int) -> None:
        """Find the first ``k`` of the ``tied`` queries anew, among all rows that come near their last place."""
        last = scores[tied, k - 1]
        bar = last - 2 * _SLACK * np.maximum(np.abs(last), 1e-3)
        near: list[list[Rows]] = [[] for _ in tied]
        for start in range(0, len(self), self._block):
            found = queries @ self.vectors.read(slice(start, start + self._block)).T
            for own, high in zip(near, found >= bar[:, None], strict=True):
                own.append(np.flatnonzero(high) + start)
        for place, query, own in zip(tied, queries, near, strict=True):
            best, ordered = self._rescored(query[None], np.concatenate(own)[None])
            scores[place, :k], rows[place, :k] = best[0, :k], ordered[0, :k]


class FaissSearch:
    """Search through any index that faiss can read (flat, HNSW, IVF-PQ, ...), mapped from disk."""

    def __init__(self, index: Any, *, ef_search: int | None = None, nprobe: int | None = None) -> None:
        self.index = index
        self._negative = index.metric_type == faiss.METRIC_L2
        if not self._negative and index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ArtifactError("the faiss index uses neither inner product nor L2", "build one that does")
        self._tune(ef_search, nprobe)

    def __len__(self) -> int:
        return int(self.index.ntotal)

    @property
    def dimension(self) -> int:
        return int(self.index.d)

    def search(self, queries: Vectors, k: int) -> Found:
        try:
            scores, rows = self.index.search(queries, k)
        except RuntimeError as error:
            raise RetrieverError(f"faiss could not search: {last_line(error)}") from error
        scores = np.where(rows < 0, -np.inf, -scores if self._negative else scores)
        order = np.lexsort((rows, -scores), axis=1)
        return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)

    def _tune(self, ef_search: int | None, nprobe: int | None) -> None:
        inner: Any = faiss.downcast_index(faiss.extract_index_ivf(self.index) if _is_ivf(self.index) else self.index)
        for name, value, attribute in (("ef_search", ef_search, "hnsw"), ("nprobe", nprobe, "nprobe")):
            if value is None:
                continue
            if not hasattr(inner, attribute):
                raise ConfigError(f"{name} does not apply to an index of type {type(inner).__name__}", "leave it out")
            if name == "ef_search":
                inner.hnsw.efSearch = value
            else:
                inner.nprobe = value


def read_faiss(path: str | Path) -> Any:
    """The faiss index in a file, memory-mapped if its type allows it. Raises ArtifactError."""
    if not Path(path).is_file():
        raise ArtifactError(f"no faiss index at {path}", "give a file written by faiss.write_index")
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        reason = first_line(RuntimeError(str(error).split("Error: ")[-1]))
        raise ArtifactError(
            f"{path} is not a valid faiss index: {reason[:160]}", "it may be truncated: fetch it again"
        ) from None


def flat_vectors(index: Any) -> Vectors | None:
    """The vectors [n, dimension] of a plain inner-product index, without copying; None for any other index."""
    if not isinstance(index, faiss.IndexFlat) or index.metric_type != faiss.METRIC_INNER_PRODUCT or not index.ntotal:
        return None
    codes: Vectors = faiss.rev_swig_ptr(index.get_xb(), index.ntotal * index.d).reshape(index.ntotal, index.d)
    return codes


def _is_ivf(index: Any) -> bool:
    try:
        return faiss.try_extract_index_ivf(index) is not None
    except AttributeError:
        return isinstance(index, faiss.IndexIVF)
