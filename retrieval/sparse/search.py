"""Exact search for the largest inner products of sparse queries with postings.

The postings of a query's words are the columns of a small matrix, whose product with the query's weights is one score
a passage (scipy); a float64 sum in the order of the words, so that it depends on nothing but query and passage. The
best are those at or above the k-th largest maximum of groups of passages, a bound that needs no sorting.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from retrieval.encoders.retriever import Found, Rows, Scores
from retrieval.sparse.postings import BLOCK, StoredPostings, Weights
from sleuth.errors import RetrieverError

_GROUP = 64
"""Passages whose largest score is looked at together."""


class PostingSearch:
    """The ``k`` best passages of sparse queries; memory beyond the mapped files is one block of scores."""

    def __init__(self, postings: StoredPostings) -> None:
        self.postings = postings

    def __len__(self) -> int:
        return len(self.postings)

    def search(self, queries: Weights, k: int) -> Found:
        """Scores and rows [queries, k] of ``queries`` [queries, words]; passages that score 0 are not found."""
        scores: Scores = np.full((len(queries), k), -np.inf, np.float32)
        rows: Rows = np.full((len(queries), k), -1, np.int64)
        for place, query in enumerate(queries):
            found, where = self._one(query, k)
            scores[place, : len(found)], rows[place, : len(found)] = found, where
        return scores, rows

    def _one(self, query: Weights, k: int) -> tuple[NDArray[np.float64], Rows]:
        words = np.flatnonzero(query)
        weights = query[words].astype(np.float64)
        if self.postings.scales is not None:
            weights *= self.postings.scales[words]
        scores, rows = np.empty(0), np.empty(0, np.int64)
        for block in range(len(self.postings.starts)):
            values = self._scores(block, words, weights)
            places = best_places(values, k)
            scores = np.concatenate([scores, values[places]])
            rows = np.concatenate([rows, places + block * BLOCK])
        order = np.lexsort((rows, -scores))[:k]
        return scores[order], rows[order]

    def _scores(self, block: int, words: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The score of each passage of a block."""
        starts = self.postings.starts[block]
        bounds = list(zip(starts[words].tolist(), starts[words + 1].tolist(), strict=True))
        size = min(BLOCK, len(self) - block * BLOCK)
        if not any(end > begin for begin, end in bounds):
            return np.zeros(size)
        rows = np.concatenate([self.postings.rows[begin:end] for begin, end in bounds], dtype=np.int32)
        codes = np.concatenate([self.postings.codes[begin:end] for begin, end in bounds], dtype=np.float64)
        ends = np.cumsum([0, *(end - begin for begin, end in bounds)], dtype=np.int32)
        scores: NDArray[np.float64] = csc_array((codes, rows, ends), shape=(size, len(words))) @ weights
        return scores


def best_places(scores: NDArray[np.float64], k: int) -> Rows:
    """Where the ``k`` largest of ``scores`` above 0 are, and all that equal the last of them; in no order.

    Raises RetrieverError where one is not finite.
    """
    groups = len(scores) // _GROUP
    largest = scores[: groups * _GROUP].reshape(-1, _GROUP).max(axis=1)
    rest = scores[groups * _GROUP :]
    if np.isnan(largest).any() or np.isnan(rest).any():
        raise RetrieverError("a weight of the index is not finite (NaN)", "the index is damaged: rebuild it")
    bound = float(np.partition(largest, groups - k)[groups - k]) if k <= groups else 0.0
    places = np.flatnonzero(scores >= bound) if bound > 0 else np.flatnonzero(scores > 0)
    if len(places) > k:
        last = np.partition(scores[places], len(places) - k)[len(places) - k]
        places = places[scores[places] >= last]
    return places
