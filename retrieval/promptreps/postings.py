"""Terms of passages on disk, and their inverted index: who has a token, and how heavily. Exact search by scipy.

``terms.npy`` int32 [passages, n, 2] holds token ids and weights while an index is built. The index itself is
``postings.npz``-like: three plain arrays of a compressed matrix [vocabulary, passages], memory-mapped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from retrieval.encoders.retriever import Found
from retrieval.promptreps.terms import Terms
from sleuth.errors import ArtifactError

TERMS = "terms.npy"
FILES = ("postings.starts.npy", "postings.passages.npy", "postings.weights.npy")
_BLOCK = 64


def create_terms(folder: Path, count: int, terms: int) -> NDArray[np.int32]:
    """Room for the terms of ``count`` passages, or the existing file of that shape."""
    path = folder / TERMS
    if path.exists():
        found: NDArray[np.int32] = np.lib.format.open_memmap(path, mode="r+")
        if found.shape == (count, terms, 2):
            return found
        path.unlink()
    made: NDArray[np.int32] = np.lib.format.open_memmap(path, mode="w+", dtype=np.int32, shape=(count, terms, 2))
    return made


def invert(terms: NDArray[np.int32], vocabulary: int, folder: Path) -> int:
    """Write the inverted index of ``terms`` [passages, n, 2]; returns how many weights it has."""
    rows, places = np.nonzero(terms[:, :, 1])
    ids, weights = terms[rows, places, 0], terms[rows, places, 1]
    order = np.argsort(ids, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(ids, minlength=vocabulary))])
    for name, array in zip(FILES, (starts, rows[order].astype(np.int32), weights[order]), strict=True):
        np.save(folder / name, array)
    return len(ids)


class Postings:
    """An inverted index as written by `invert`."""

    def __init__(self, folder: Path, passages: int) -> None:
        try:
            starts, rows, weights = (np.load(folder / name, mmap_mode="r") for name in FILES)
        except (OSError, ValueError, EOFError) as error:
            raise ArtifactError(f"the terms of {folder} cannot be read: {error}", "rebuild the index") from None
        shape = (len(starts) - 1, passages)
        self.matrix: Any = csr_matrix((weights.astype(np.float32), rows, starts), shape=shape)

    @property
    def vocabulary(self) -> int:
        return int(self.matrix.shape[0])

    def search(self, queries: Terms, k: int) -> Found:
        """The ``k`` best of each query, ties by row; only passages that share a token."""
        found = [self._search_block(queries, start, k) for start in range(0, len(queries.ids), _BLOCK)]
        return np.concatenate([scores for scores, _ in found]), np.concatenate([rows for _, rows in found])

    def _search_block(self, queries: Terms, start: int, k: int) -> Found:
        asked = Terms(queries.ids[start : start + _BLOCK], queries.weights[start : start + _BLOCK])
        scores = csr_matrix(asked.as_words(self.vocabulary).numpy()).dot(self.matrix).toarray()
        rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(scores, rows, axis=1)
        nothing = best <= 0
        return np.where(nothing, -np.inf, best).astype(np.float32), np.where(nothing, -1, rows).astype(np.int64)
