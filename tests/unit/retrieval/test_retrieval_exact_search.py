"""Exact search without an order of its own: ties by passage, and no second reading where none is needed."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from retrieval.dense.search import FlatSearch
from retrieval.dense.vectors import StoredVectors, Vectors
from retrieval.encoders.dense import DENSE
from retrieval.encoders.family import Encoded
from retrieval.encoders.pieces import nearest


class CountsReadings(StoredVectors):
    """Counts how often the first block is read."""

    __slots__ = ("readings",)

    def read(self, rows: Any) -> Vectors:
        if isinstance(rows, slice) and not rows.start:
            object.__setattr__(self, "readings", getattr(self, "readings", 0) + 1)
        return super().read(rows)


def searched(vectors: Vectors, queries: Vectors, k: int) -> tuple[Any, int]:
    kept = CountsReadings(vectors)
    _, rows = FlatSearch(kept).ranked(queries, k)
    return rows, kept.readings


def exactly(vectors: Vectors, queries: Vectors, k: int) -> Any:
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


def on_a_line(scores: list[float]) -> tuple[Vectors, Vectors]:
    """Vectors with these scores for each of six queries: more than what faiss is asked for."""
    vectors = np.zeros((len(scores), 4), dtype=np.float32)
    vectors[:, 0] = scores
    return vectors, np.tile(np.array([[1, 0, 0, 0]], dtype=np.float32), (6, 1))


def test_a_near_tie_at_the_last_place_reads_the_vectors_once() -> None:
    scores = [float(score) for score in np.linspace(0.1, 0.9, 300)]
    scores[7], scores[100] = 1.0, 1.0 - 2e-7  # closer than what float32 sums can tell apart
    vectors, queries = on_a_line(scores)
    rows, readings = searched(vectors, queries, 1)
    assert readings == 1
    assert rows.tolist() == [[7]] * 6


@pytest.mark.parametrize(("k", "expected"), [(1, 1), (3, 2), (20, 2)])
def test_ties_beyond_the_spare_candidates_are_ordered_by_row(k: int, expected: int) -> None:
    vectors, queries = on_a_line([0.5, *[0.9] * 40, 1.0, 0.2])
    rows, readings = searched(vectors, queries, k)
    assert readings == expected  # all tied queries share the second reading
    np.testing.assert_array_equal(rows, exactly(vectors, queries, k))


def test_exact_search_never_asks_beyond_the_passages() -> None:
    vectors, queries = on_a_line([0.3, 0.9, 0.9, 0.1])
    rows, readings = searched(vectors, queries, 3)
    assert (rows.tolist(), readings) == ([[1, 2, 0]] * 6, 1)


@pytest.mark.parametrize("k", [1, 3, 7, 50])
@pytest.mark.parametrize("size", [1, 4, 16, 64])
def test_nearest_keeps_passage_order_among_equal_scores(k: int, size: int) -> None:
    generator = torch.Generator().manual_seed(k)
    passages = torch.randint(-2, 3, (40, 3), generator=generator).float()  # few distinct scores: many ties
    queries = torch.randint(-2, 3, (9, 3), generator=generator).float()
    encoder: Any = SimpleNamespace(family=DENSE, device=torch.device("cpu"))

    def pieces() -> Iterator[Encoded]:
        yield from (Encoded(part) for part in passages.split(size))

    scores, numbers = nearest(encoder, Encoded(queries), pieces(), k)
    expected, order = (queries @ passages.T).sort(dim=1, descending=True, stable=True)
    assert torch.equal(numbers, order[:, :k])
    assert torch.equal(scores, expected[:, :k])
