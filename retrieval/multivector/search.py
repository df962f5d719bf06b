"""MaxSim: for each token of a query its largest product with a token of the passage, summed (ColBERT).

Exact search goes through all token vectors block by block. The scores of the hits are then recomputed in float64, so
that they and the order of ties (by row) depend neither on the method nor on the other queries.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.encoders.retriever import Found, Rows, Scores
from retrieval.multivector.tokens import TokenVectors, Vectors, tokens_of

QUERY_TOKENS = 2_048
"""Tokens of queries that are searched together at most, unless one query has more."""
SCORES = 16_000_000
"""Scores, queries times passages, that are kept at most."""
BLOCK = 2_000_000
"""Products of a block, tokens of passages times tokens of queries: small enough for the CPU caches."""
MOST_TOKENS = 32_768

_SLACK = 1e-5


class TokenSearch(Protocol):
    """Passages that are searched by the token vectors of a query."""

    @property
    def dimension(self) -> int: ...

    def __len__(self) -> int: ...

    def search(self, queries: list[Vectors], k: int) -> Found:
        """The ``k`` best rows for each of ``queries`` [tokens, dimension]."""
        ...


class ExactSearch:
    """All passages are compared; memory beyond the mapped file is a block and the scores of some queries."""

    def __init__(self, tokens: TokenVectors) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens.bounds) - 1

    @property
    def dimension(self) -> int:
        return self.tokens.dimension

    def search(self, queries: list[Vectors], k: int) -> Found:
        every = np.arange(len(self))
        found = []
        for some in _groups(queries, len(self)):
            for query, scores in zip(some, self._scores(some), strict=True):
                found.append(best(query, scores, every, self.tokens, k))
        return stack(found)

    def _scores(self, queries: list[Vectors]) -> Scores:
        """Scores [queries, passages]; -inf for a passage without tokens."""
        asked = torch.from_numpy(np.concatenate(queries))
        starts = np.cumsum([0, *map(len, queries[:-1])])
        scores = np.full((len(queries), len(self)), -np.inf, dtype=np.float32)
        for first, last in self._blocks(len(asked)):
            bounds = self.tokens.bounds[first : last + 1]
            products = torch.from_numpy(self.tokens.read(slice(bounds[0], bounds[-1]))) @ asked.T
            filled = np.flatnonzero(np.diff(bounds))
            if len(filled):
                best_of_each = np.maximum.reduceat(products.numpy(), bounds[filled] - bounds[0], axis=0)
                scores[:, first + filled] = np.add.reduceat(best_of_each, starts, axis=1).T
        return scores

    def _blocks(self, asked: int) -> Iterator[tuple[int, int]]:
        """Ranges of passages."""
        room = max(1, min(MOST_TOKENS, BLOCK // asked))
        bounds, first = self.tokens.bounds, 0
        while first < len(self):
            last = int(np.searchsorted(bounds, bounds[first] + room, side="right")) - 1
            last = min(max(last, first + 1), len(self))
            yield first, last
            first = last


def maxsim(query: Vectors, vectors: Vectors, lengths: Rows) -> Scores:
    """Scores of passages of ``lengths`` tokens, whose ``vectors`` stand one after another; -inf for an empty one."""
    scores = np.full(len(lengths), -np.inf, dtype=np.result_type(query, vectors))
    filled = np.flatnonzero(lengths)
    if len(filled):
        products = (torch.from_numpy(vectors) @ torch.from_numpy(query).T).numpy()
        starts = (np.cumsum(lengths) - lengths)[filled]
        scores[filled] = np.maximum.reduceat(products, starts, axis=0).sum(axis=1)
    return scores


def best(query: Vectors, scores: Scores, rows: Rows, tokens: TokenVectors, k: int) -> tuple[NDArray[np.float64], Rows]:
    """The ``k`` best of ``rows``, whose ``scores`` are nearly right: recomputed in float64, ties by row.

    NaN comes first, for the caller to refuse.
    """
    order = np.where(np.isnan(scores), np.inf, scores)
    if len(rows) > k:
        last = -np.partition(-order, k - 1)[k - 1]
        order = np.where(order >= last - 2 * _SLACK * max(abs(last), 1.0), order, -np.inf) if last > -np.inf else order
    near = np.flatnonzero(order > -np.inf)
    near = near[np.argsort(rows[near], kind="stable")]
    places, lengths = tokens_of(tokens.bounds, rows[near])
    exact = maxsim(query.astype(np.float64), tokens.read(places).astype(np.float64), lengths)
    first = np.argsort(-np.where(np.isnan(exact), np.inf, exact), kind="stable")[:k]
    found = np.full(k, -np.inf), np.full(k, -1, dtype=np.int64)
    found[0][: len(first)], found[1][: len(first)] = exact[first], rows[near][first]
    return found


def stack(found: list[tuple[NDArray[np.float64], Rows]]) -> Found:
    return np.stack([scores for scores, _ in found]).astype(np.float32), np.stack([rows for _, rows in found])


def _groups(queries: list[Vectors], passages: int) -> Iterator[list[Vectors]]:
    group: list[Vectors] = []
    for query in queries:
        full = sum(map(len, group)) + len(query) > QUERY_TOKENS or (len(group) + 1) * passages > SCORES
        if group and full:
            yield group
            group = []
        group.append(query)
    yield group
