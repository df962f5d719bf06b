"""An index of residual codes: passages near the query's tokens by centroid, then MaxSim on their decoded vectors.

As in PLAID (Santhanam et al. 2022) and XTR (Lee et al. 2023): each token of a query looks into the lists of its
``nprobe`` nearest centroids; a passage that is in none of them counts there as the farthest of these. The best
``candidates`` are decoded and scored exactly.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.encoders.family import Encoded, PassageEncoder
from retrieval.encoders.pieces import SHARD, IndexWriter
from retrieval.encoders.retriever import Found, Scores
from retrieval.multivector.codebook import (
    CENTROIDS,
    LEVELS,
    Codebook,
    learn,
    lists_of,
    open_codebook,
    residual_width,
)
from retrieval.multivector.pooling import pooling_of
from retrieval.multivector.search import TokenSearch, best, compare, stack
from retrieval.multivector.tokens import (
    BOUNDS,
    Bounds,
    RowFile,
    Rows,
    Vectors,
    kept,
    open_array,
    open_bounds,
)
from retrieval.passages import passage_text
from retrieval.store import PassageStore
from sleuth.artifacts import atomic_write, file_digest, fingerprint_of
from sleuth.errors import ArtifactError, ConfigError

CODES = "codes.npy"
RESIDUALS = "residuals.npy"
LISTS = "lists.npy"
LIST_BOUNDS = "list_bounds.npy"

log = logging.getLogger("sleuth.index")

_LEARNED = "codebook.json"
_POINTS = 32
"""Token vectors of the sample for each centroid."""
_FIRST = 256
"""Passages by whose length the number of token vectors is estimated."""


@dataclass(frozen=True, slots=True)
class Residual:
    """A centroid and a code of ``bits`` bits a dimension for each token."""

    TUNED: ClassVar[frozenset[str]] = frozenset({"nprobe", "candidates"})

    bits: int = 2
    """1, 2 or 4; 32: residuals as they are."""
    centroids: int | None = None
    """None: 4 times the square root of the number of token vectors, and at most one for 8 of the sample."""
    seed: int = 0
    unit: bool = True
    """Whether vectors have length 1; as the encoder says."""
    pool_factor: float | None = None

    def writer(self, folder: Path, count: int, encoder: PassageEncoder) -> IndexWriter:
        unit = bool(getattr(encoder.settings, "unit_length", False))
        return ResidualWriter(folder, count, _codebook(folder, encoder, replace(self, unit=unit)))

    def open(self, index: Path, nprobe: int = 4, candidates: int = 256) -> TokenSearch:
        tokens, lists, begins = open_coded(index, self.unit), open_array(index, LISTS), open_array(index, LIST_BOUNDS)
        whole = begins.shape == (len(tokens.book.centroids) + 1,) and not (np.diff(begins) < 0).any()
        whole = whole and begins[0] == 0 and lists.shape == (begins[-1],)
        if not whole or (len(lists) and not 0 <= int(lists.min()) <= int(lists.max()) < len(tokens.bounds) - 1):
            raise ArtifactError(f"the lists of {index} are damaged", "rebuild the index")
        return ResidualSearch(tokens, lists, np.array(begins), nprobe, candidates)


@dataclass(frozen=True, slots=True)
class CodedTokens:
    """Token vectors as ``codes`` [tokens] and ``residuals`` [tokens, width] of a codebook."""

    book: Codebook
    codes: NDArray[Any]
    residuals: NDArray[Any]
    bounds: Rows

    @property
    def dimension(self) -> int:
        return int(self.book.centroids.shape[1])

    def read(self, tokens: slice | Rows) -> Vectors:
        return self.book.decode(self.codes[tokens], self.residuals[tokens])


class ResidualWriter:
    """Writes the codes of ``count`` passages into ``folder``, which may have some from an earlier run."""

    def __init__(self, folder: Path, count: int, book: Codebook) -> None:
        self._folder, self._book, self._bounds = folder, book, Bounds(folder, count)
        self._codes = RowFile(folder / CODES, 0, "uint16" if len(book.centroids) <= 1 << 16 else "int32")
        self._residuals = RowFile(folder / RESIDUALS, book.width, book.dtype)
        self.plan = {"codebook": [file_digest(folder / name) for name in (CENTROIDS, LEVELS)]}
        self.intact = self._bounds.intact and self._codes.exists and self._residuals.exists

    def write(self, start: int, encoded: Encoded) -> None:
        vectors, lengths = kept(encoded)
        codes, residuals = self._book.encode(vectors)
        first = self._bounds.add(start, lengths)
        self._codes.write(first, codes)
        self._residuals.write(first, residuals)

    def finish(self) -> tuple[dict[str, Any], list[str]]:
        count, centroids = self._bounds.tokens, len(self._book.centroids)
        self._codes.close(count)
        self._residuals.close(count)
        lists, begins = lists_of(open_array(self._folder, CODES), open_bounds(self._folder), centroids)
        np.save(self._folder / LISTS, lists)
        np.save(self._folder / LIST_BOUNDS, begins)
        fields = {"tokens": count, "dimension": self._book.centroids.shape[1]}
        own = {"centroids": centroids, "bits": self._book.bits, "unit": self._book.unit}
        return {**fields, **own}, [CODES, RESIDUALS, BOUNDS, CENTROIDS, LEVELS, LISTS, LIST_BOUNDS]


class ResidualSearch:
    """Candidates by centroid, then MaxSim on decoded vectors."""

    def __init__(
        self, tokens: CodedTokens, lists: NDArray[np.int32], list_bounds: Rows, nprobe: int, candidates: int
    ) -> None:
        self.tokens, self._lists, self._list_bounds = tokens, lists, list_bounds
        self._nprobe, self._candidates = min(nprobe, len(tokens.book.centroids)), candidates

    def __len__(self) -> int:
        return len(self.tokens.bounds) - 1

    @property
    def dimension(self) -> int:
        return self.tokens.dimension

    def search(self, queries: list[Vectors], k: int) -> Found:
        return stack([self._one(query, k) for query in queries])

    def _one(self, query: Vectors, k: int) -> tuple[NDArray[np.float64], Rows]:
        rows = self._near(query, k)
        return best(query, compare(query, self.tokens, rows), rows, self.tokens, k)

    def _near(self, query: Vectors, k: int) -> Rows:
        """At most ``candidates`` passages, and ``k`` at least if there are so many; more centroids where need be."""
        products = (torch.from_numpy(query) @ torch.from_numpy(self.tokens.book.centroids).T).numpy()
        nprobe, most = self._nprobe, max(k, self._candidates)
        while True:
            scores, rows = self._probed(products, nprobe)
            if len(rows) >= min(k, len(self)) or nprobe >= products.shape[1]:
                break
            nprobe = min(2 * nprobe, products.shape[1])
        if len(rows) > most:
            rows = np.sort(rows[np.argpartition(-scores, most - 1)[:most]])
        return rows

    def _probed(self, products: Scores, nprobe: int) -> tuple[Scores, Rows]:
        """Passages that have a token at one of the ``nprobe`` nearest centroids of a query's token.

        Their scores are above what a passage at none of them has.
        """
        nearest = np.argpartition(-products, nprobe - 1, axis=1)[:, :nprobe]
        above = np.take_along_axis(products, nearest, 1)
        above -= above.min(axis=1, keepdims=True)
        total, token = np.zeros(len(self), np.float32), np.zeros(len(self), np.float32)
        met = np.zeros(len(self), np.bool_)
        for centroids, gains in zip(nearest, above, strict=True):
            order = np.argsort(gains, kind="stable")  # the nearest last, so that its gain stays
            begins, ends = self._list_bounds[centroids[order]], self._list_bounds[centroids[order] + 1]
            rows = np.concatenate([self._lists[a:b] for a, b in zip(begins, ends, strict=True)])
            token[rows] = np.repeat(gains[order], ends - begins)
            total[rows] += token[rows]  # a row that is there twice is added once
            met[rows] = True
        found = np.flatnonzero(met)
        return total[found], found


def open_coded(index: str | Path, unit: bool) -> CodedTokens:
    """Raises ArtifactError if a file is missing or damaged."""
    book, codes, residuals = open_codebook(index, unit), open_array(index, CODES), open_array(index, RESIDUALS)
    bounds = open_bounds(index)
    if residuals.shape != (bounds[-1], book.width) or codes.shape != (bounds[-1],):
        raise ArtifactError(f"the codes of {index} are damaged", "rebuild the index")
    if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < len(book.centroids):
        raise ArtifactError(f"the codes of {index} name centroids that there are not", "rebuild the index")
    return CodedTokens(book, codes, residuals, bounds)


def _codebook(folder: Path, encoder: PassageEncoder, how: Residual) -> Codebook:
    """The codebook for the passages stored in ``folder``; one that an earlier run learned from the same is taken."""
    residual_width(encoder.dimension, how.bits)
    store = PassageStore(folder)
    order = np.random.default_rng(how.seed).permutation(len(store))
    first = [store[row] for row in order[:_FIRST].tolist()]
    identity: Mapping[str, Any] = {
        "encoder": encoder.tower_fingerprint("passage"),
        "passages": [len(store), [passage_text(p) for p in first]],
        **asdict(how),
    }
    mark = fingerprint_of(identity)
    try:
        if json.loads((folder / _LEARNED).read_text(encoding="utf-8")) == mark:
            return open_codebook(folder, how.unit)
    except (OSError, ValueError, ArtifactError):
        pass
    pooling = pooling_of(how.pool_factor, encoder)
    sample = [kept(pooling(encoder.encode_passages(first)))[0]]
    tokens = len(sample[0]) / len(first) * len(store)
    wanted = how.centroids or round(4 * np.sqrt(tokens))
    passages = int(np.ceil(wanted * _POINTS / max(1.0, len(sample[0]) / len(first))))
    log.info("centroids: encoding a sample of %s passages first", f"{min(len(store), max(_FIRST, passages)):,}")
    for start in range(_FIRST, min(len(store), passages), SHARD):
        rows = order[start : min(start + SHARD, passages)].tolist()
        sample.append(kept(pooling(encoder.encode_passages([store[row] for row in rows])))[0])
    vectors = np.concatenate(sample)
    if how.centroids is not None and how.centroids > len(vectors):
        raise ConfigError(
            f"centroids is {how.centroids:,}, more than the {len(vectors):,} token vectors of {len(store):,} passages",
            "choose fewer, or leave centroids out",
        )
    if not len(vectors):
        raise ConfigError("no passage has a token vector to learn centroids from", "choose index type flat")
    log.info("centroids: learning them from %s token vectors", f"{len(vectors):,}")
    book = learn(vectors, how.centroids or max(1, min(wanted, len(vectors) // 8)), how.bits, how.unit, how.seed)
    book.save(folder)
    atomic_write(folder / _LEARNED, json.dumps(mark))
    return book
