"""Centroids and residual codes of token vectors (ColBERTv2, Santhanam et al. 2022), learned once from a sample.

A vector is its nearest centroid plus a residual, each of whose numbers is one of ``2 ** bits`` values; the values are
quantiles of the sample's residuals. With 32 bits residuals are kept as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.multivector.tokens import Rows, Vectors, open_array
from sleuth.errors import ArtifactError, ConfigError

CENTROIDS = "centroids.npy"
LEVELS = "levels.npy"
BITS = (1, 2, 4, 32)

_ITERATIONS = 10
_VALUES = 1 << 22
"""Numbers of residuals at most from which quantiles are taken."""
_PRODUCTS = 4_000_000
"""Products of vectors and centroids at once."""

Codes = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Codebook:
    """``centroids`` [n, dimension]; ``levels`` [2 ** bits] in order, none where residuals are floats."""

    centroids: Vectors
    levels: NDArray[np.float32]
    unit: bool
    """Whether vectors have length 1, as they are given again when they are decoded."""

    @property
    def bits(self) -> int:
        return len(self.levels).bit_length() - 1 if len(self.levels) else 32

    @property
    def width(self) -> int:
        """Numbers in a row of stored residuals: floats, or bytes of codes."""
        return residual_width(self.centroids.shape[1], self.bits)

    @property
    def dtype(self) -> str:
        return "uint8" if len(self.levels) else "float32"

    def nearest(self, vectors: Vectors) -> Codes:
        """The nearest centroid of each of ``vectors``."""
        centroids = torch.from_numpy(self.centroids)
        half = (centroids**2).sum(1) / 2
        codes, step = [], max(1, _PRODUCTS // len(centroids))
        for start in range(0, len(vectors), step):
            products = torch.from_numpy(vectors[start : start + step]) @ centroids.T
            codes.append((products - half).argmax(1).numpy().astype(np.int32))
        return np.concatenate(codes) if codes else np.empty(0, np.int32)

    def encode(self, vectors: Vectors) -> tuple[Codes, NDArray[Any]]:
        """Centroids [n] and stored residuals [n, width]."""
        codes = self.nearest(vectors)
        residuals = vectors - self.centroids[codes]
        if not len(self.levels):
            return codes, residuals
        cuts = (self.levels[1:] + self.levels[:-1]) / 2
        return codes, _pack(np.searchsorted(cuts, residuals).astype(np.uint8), self.bits)

    def decode(self, codes: NDArray[Any], residuals: NDArray[Any]) -> Vectors:
        """The vectors [n, dimension]; with residuals in floats what was encoded, but for rounding."""
        if not len(self.levels):
            plain: Vectors = self.centroids[codes] + residuals
            return plain
        vectors: Vectors = self._bytes()[residuals].reshape(len(codes), -1)
        vectors += self.centroids[codes]
        if self.unit:
            vectors /= np.maximum(np.sqrt(np.einsum("nd,nd->n", vectors, vectors)), 1e-12)[:, None]
        return vectors

    def save(self, folder: Path) -> None:
        np.save(folder / LEVELS, self.levels)
        np.save(folder / CENTROIDS, self.centroids)

    def _bytes(self) -> NDArray[np.float32]:
        """The residuals [256, numbers] that each byte stands for."""
        return self.levels[_unpack(np.arange(256, dtype=np.uint8), self.bits)]


def open_codebook(folder: str | Path, unit: bool) -> Codebook:
    centroids, levels = np.asarray(open_array(folder, CENTROIDS)), np.array(open_array(folder, LEVELS))
    if centroids.ndim != 2 or levels.ndim != 1:
        raise ArtifactError(f"the centroids of {folder} are damaged", "rebuild the index")
    return Codebook(centroids, levels, unit)


def learn(vectors: Vectors, count: int, bits: int, unit: bool, seed: int) -> Codebook:
    """``count`` centroids of ``vectors`` by k-means, and the levels of their residuals; one seed gives one result."""
    dimension = vectors.shape[1]
    means: Any = faiss.Kmeans(
        dimension,
        count,
        niter=_ITERATIONS,
        seed=seed + 1234,
        spherical=unit,
        min_points_per_centroid=1,  # else it prints a warning
        max_points_per_centroid=max(1, len(vectors)),
    )
    means.train(np.ascontiguousarray(vectors))
    book = Codebook(np.reshape(means.centroids, (count, dimension)), np.empty(0, np.float32), unit)
    if bits == 32:
        return book
    residuals = (vectors - book.centroids[book.nearest(vectors)]).reshape(-1)
    values = residuals[:: max(1, len(residuals) // _VALUES)]
    shares = (np.arange(2**bits) + 0.5) / 2**bits
    return Codebook(book.centroids, np.quantile(values, shares).astype(np.float32), unit)


def residual_width(dimension: int, bits: int) -> int:
    """Raises ConfigError where codes do not fill whole bytes, or for a number of bits that there is not."""
    if bits not in BITS:
        raise ConfigError(
            f"bits is {bits}", f"choose {', '.join(map(str, BITS[:-1]))}, or 32 for residuals as they are"
        )
    if bits == 32:
        return dimension
    if dimension * bits % 8:
        raise ConfigError(f"{dimension} numbers of {bits} bits do not fill bytes", "choose more bits")
    return dimension * bits // 8


def lists_of(codes: NDArray[Any], bounds: Rows, centroids: int, block: int = 65_536) -> tuple[NDArray[np.int32], Rows]:
    """The passages that have a token at each centroid, in order, one centroid after another; and where each begins."""
    starts: Sequence[int] = range(0, len(bounds) - 1, block)
    counts = np.zeros(centroids + 1, dtype=np.int64)
    for start in starts:
        counts[1:] += np.bincount(_pairs(codes, bounds, start, block)[0], minlength=centroids)
    begins = np.cumsum(counts)
    lists, place = np.empty(int(begins[-1]), dtype=np.int32), begins[:-1].copy()
    for start in starts:
        at, passages = _pairs(codes, bounds, start, block)
        number = np.bincount(at, minlength=centroids)
        within = np.arange(len(at)) - np.repeat(np.cumsum(number) - number, number)
        lists[place[at] + within] = passages
        place += number
    return lists, begins


def _pairs(codes: NDArray[Any], bounds: Rows, start: int, block: int) -> tuple[Rows, Rows]:
    """Distinct centroids and passages of the passages from ``start`` on, sorted by centroid."""
    some = bounds[start : start + block + 1]
    passages = np.repeat(np.arange(start, start + len(some) - 1), np.diff(some))
    keys = np.unique(codes[some[0] : some[-1]].astype(np.int64) * len(bounds) + passages)
    return keys // len(bounds), keys % len(bounds)


def _pack(numbers: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Numbers of ``bits`` bits [n, d] as bytes [n, d * bits / 8], the first in the highest bits."""
    each = 8 // bits
    shifts = np.arange(each - 1, -1, -1, dtype=np.uint8) * bits
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(numbers.reshape(len(numbers), -1, each) << shifts, axis=2)
    return packed


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Each byte's numbers [..., 8 / bits]."""
    shifts = np.arange(8 // bits - 1, -1, -1, dtype=np.uint8) * bits
    numbers: NDArray[np.uint8] = (packed[..., None] >> shifts) & (2**bits - 1)
    return numbers
