"""MUVERA (Dhulipala et al. 2024): one vector of fixed dimension a passage, whose products are near MaxSim.

The vectors are a dense index, exact or approximate; its best ``candidates`` are then scored by MaxSim on their token
vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from torch import Tensor

from retrieval.dense.approximate import FILES
from retrieval.dense.approximate import IndexType as DenseType
from retrieval.dense.build import DenseWriter
from retrieval.dense.search import FaissSearch, VectorSearch, read_faiss
from retrieval.dense.vectors import DTYPES, StoredVectors, open_vectors
from retrieval.encoders.family import Encoded, PassageEncoder
from retrieval.encoders.pieces import IndexWriter
from retrieval.encoders.retriever import Found
from retrieval.multivector.build import TokenWriter
from retrieval.multivector.search import SCORES, TokenSearch, best, compare, stack
from retrieval.multivector.tokens import Rows, StoredTokens, Vectors, open_array, open_tokens
from sleuth.errors import ArtifactError, ConfigError, RetrieverError, did_you_mean

PLANES = "planes.npy"
PROJECTIONS = "projections.npy"

_PASSAGES = 64
"""Passages that are worked on at once."""
_BLOCK = 4_000_000
"""Numbers that are decoded at once: they fit into the CPU caches."""


@dataclass(frozen=True, slots=True)
class Muvera:
    """``repetitions`` * 2 ** ``k_sim`` * ``d_proj`` dimensions."""

    TUNED: ClassVar[frozenset[str]] = frozenset({"candidates"})

    dtype: str = "float32"
    """Of the token vectors."""
    repetitions: int = 20
    k_sim: int = 5
    """Random planes, which part the space into 2 ** ``k_sim`` cells."""
    d_proj: int = 32
    """Dimensions to which a cell's vector is projected."""
    fixed_dtype: str = "int8"
    """Of the vectors of fixed dimension."""
    fixed_type: str = "flat"
    """How these are searched: flat, hnsw or ivfpq."""
    seed: int = 0
    pool_factor: float | None = None

    def writer(self, folder: Path, count: int, encoder: PassageEncoder) -> IndexWriter:
        if self.fixed_type not in get_args(DenseType):
            raise ConfigError(f"no fixed_type '{self.fixed_type}'", did_you_mean(self.fixed_type, get_args(DenseType)))
        if self.fixed_dtype not in DTYPES:
            raise ConfigError(f"fixed_dtype is '{self.fixed_dtype}'", did_you_mean(self.fixed_dtype, DTYPES))
        return MuveraWriter(folder, count, encoder.dimension, self)

    def open(self, index: Path, candidates: int = 128) -> TokenSearch:
        fixed: VectorSearch
        if self.fixed_type == "flat":
            fixed = Nearest(open_vectors(index))
        else:
            fixed = FaissSearch(read_faiss(index / FILES[self.fixed_type]))  # type: ignore[index]
        cells = Cells(torch.from_numpy(open_array(index, PLANES)), torch.from_numpy(open_array(index, PROJECTIONS)))
        tokens = open_tokens(index)
        fits = fixed.dimension == cells.dimension and len(fixed) == len(tokens.bounds) - 1
        if not fits or not (cells.planes.isfinite().all() and cells.projections.isfinite().all()):
            raise ArtifactError(f"the vectors of fixed dimension of {index} are damaged", "rebuild the index")
        return MuveraSearch(tokens, fixed, cells, candidates)


@dataclass(frozen=True, slots=True)
class Cells:
    """``planes`` [repetitions, k_sim, dimension] and ``projections`` [repetitions, d_proj, dimension], both random."""

    planes: Tensor
    projections: Tensor

    @property
    def dimension(self) -> int:
        return int(self.planes.shape[0] * 2 ** self.planes.shape[1] * self.projections.shape[1])

    def of_query(self, vectors: Vectors) -> Vectors:
        """[dimension]: the sum of the tokens in each cell."""
        tokens = torch.from_numpy(vectors)[None]
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool)
        found: Vectors = self._joined([self._sums(tokens, mask, r)[0] for r in range(len(self.planes))])[0]
        return found

    def of_passages(self, encoded: Encoded) -> Vectors:
        """[passages, dimension]: the mean of the tokens in each cell, for an empty one the token nearest to it."""
        assert encoded.mask is not None
        made = []
        for start in range(0, len(encoded), _PASSAGES):
            some = encoded[start : start + _PASSAGES]
            assert some.mask is not None
            made.append(self._joined([self._means(some.values, some.mask, r) for r in range(len(self.planes))]))
        return np.concatenate(made)

    def _sums(self, tokens: Tensor, mask: Tensor, r: int) -> tuple[Tensor, Tensor, Tensor]:
        """Projected sums [n, cells, d_proj], counts [n, cells] and the cell of each token [n, tokens]."""
        weights = 2 ** torch.arange(self.planes.shape[1])
        cell = ((tokens @ self.planes[r].T > 0) * weights).sum(-1)
        held = torch.nn.functional.one_hot(cell, 2 ** self.planes.shape[1]).float() * mask[..., None]
        return held.mT @ (tokens @ self.projections[r].T), held.sum(1), cell

    def _means(self, tokens: Tensor, mask: Tensor, r: int) -> Tensor:
        sums, counts, cell = self._sums(tokens, mask, r)
        cells, places = torch.arange(counts.shape[1]), torch.arange(tokens.shape[1], dtype=torch.int32)
        apart = (((cells[:, None] ^ cells)[..., None] >> torch.arange(self.planes.shape[1])) & 1).sum(-1)
        far = (apart.int() * len(places))[cell].masked_fill_(~mask[..., None], len(cells) * len(places))
        nearest = far.add_(places[:, None]).amin(1).long() % len(places)  # [n, cells]: the first of the nearest tokens
        filling = (tokens @ self.projections[r].T).gather(1, nearest[..., None].expand(-1, -1, sums.shape[2]))
        means = torch.where(counts[..., None] > 0, sums / counts.clamp(min=1)[..., None], filling)
        return means * mask.any(1)[:, None, None]

    @staticmethod
    def _joined(parts: list[Tensor]) -> Vectors:
        joined: Vectors = torch.cat([part.flatten(1) for part in parts], 1).numpy()
        return joined


def draw(how: Muvera, dimension: int) -> Cells:
    random = np.random.default_rng(how.seed)
    planes = random.standard_normal((how.repetitions, how.k_sim, dimension))
    signs = random.choice([-1.0, 1.0], (how.repetitions, how.d_proj, dimension)) / np.sqrt(how.d_proj)
    return Cells(torch.from_numpy(planes.astype(np.float32)), torch.from_numpy(signs.astype(np.float32)))


class MuveraWriter:
    """Writes token vectors and vectors of fixed dimension side by side."""

    def __init__(self, folder: Path, count: int, dimension: int, how: Muvera) -> None:
        self._folder, self._cells = folder, draw(how, dimension)
        self._tokens = TokenWriter(folder, count, dimension, how.dtype)
        fixed_type, fixed_dtype = how.fixed_type, how.fixed_dtype
        self._fixed = DenseWriter(folder, count, self._cells.dimension, fixed_type, fixed_dtype)  # type: ignore[arg-type]
        shape = [how.repetitions, how.k_sim, how.d_proj, how.seed]
        self.plan = {**self._tokens.plan, "fixed_dtype": fixed_dtype, "cells": shape}
        self.intact = self._tokens.intact and self._fixed.intact

    def write(self, start: int, encoded: Encoded) -> None:
        self._tokens.write(start, encoded)
        self._fixed.write(start, Encoded(torch.from_numpy(self._cells.of_passages(encoded))))

    def finish(self) -> tuple[dict[str, Any], list[str]]:
        fields, files = self._tokens.finish()
        _, fixed = self._fixed.finish()
        np.save(self._folder / PLANES, self._cells.planes.numpy())
        np.save(self._folder / PROJECTIONS, self._cells.projections.numpy())
        return {**fields, "fixed_dimension": self._cells.dimension}, [*files, *fixed, PLANES, PROJECTIONS]


@dataclass(frozen=True, slots=True)
class Nearest:
    """The largest products with stored vectors. Unlike `FlatSearch` it leaves the order of near ones to rounding."""

    vectors: StoredVectors

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        return self.vectors.dimension

    def search(self, queries: Vectors, k: int) -> Found:
        block, together = max(64, _BLOCK // self.dimension), max(1, SCORES // len(self))
        parts = []
        for first in range(0, len(queries), together):
            asked = torch.from_numpy(queries[first : first + together])
            scores = torch.empty(len(asked), len(self))
            for start in range(0, len(self), block):
                rows = slice(start, start + block)
                scores[:, rows] = asked @ torch.from_numpy(self.vectors.read(rows)).T
            parts.append(torch.topk(scores, k))
        found = [torch.cat([part[i] for part in parts]).numpy() for i in (0, 1)]
        return found[0], found[1]


class MuveraSearch:
    """Candidates by the product of two vectors, then MaxSim."""

    def __init__(self, tokens: StoredTokens, fixed: VectorSearch, cells: Cells, candidates: int) -> None:
        self.tokens, self._fixed, self._cells, self._candidates = tokens, fixed, cells, candidates

    def __len__(self) -> int:
        return len(self._fixed)

    @property
    def dimension(self) -> int:
        return self.tokens.dimension

    def search(self, queries: list[Vectors], k: int) -> Found:
        asked = np.stack([self._cells.of_query(query) for query in queries])
        scores, near = self._fixed.search(asked, min(max(k, self._candidates), len(self)))
        if np.isnan(scores).any():
            raise RetrieverError("a vector of fixed dimension is not finite (NaN)", "the index is damaged: rebuild it")
        return stack([self._one(query, rows[rows >= 0], k) for query, rows in zip(queries, near, strict=True)])

    def _one(self, query: Vectors, rows: Rows, k: int) -> tuple[Any, Rows]:
        return best(query, compare(query, self.tokens, rows), rows, self.tokens, k)
