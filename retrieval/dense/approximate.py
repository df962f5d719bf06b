"""Builds HNSW and IVF-PQ indexes with faiss from vectors on disk, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import faiss
import numpy as np

from retrieval.dense.vectors import StoredVectors, Vectors
from sleuth.errors import ConfigError

IndexType = Literal["flat", "hnsw", "ivfpq"]
FILES: dict[IndexType, str] = {"hnsw": "hnsw.faiss", "ivfpq": "ivfpq.faiss"}

_BLOCK = 65_536
_PQ_MINIMUM = 1_000
_HNSW_CODES = {"float16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}


@dataclass(frozen=True, slots=True)
class IndexParameters:
    """Build parameters of an approximate index; None: chosen from the number and size of the vectors."""

    links: int = 32
    """HNSW: neighbours of a vector per layer (M); the bottom layer has twice as many."""
    ef_construction: int = 200
    """HNSW: candidates considered when inserting a vector."""
    ef_search: int = 128
    """HNSW: candidates considered by a search; the default of the index."""
    lists: int | None = None
    """IVF: number of cells; None: 4 times the square root of the number of vectors."""
    nprobe: int | None = None
    """IVF: cells probed by a search; the default of the index. None: a sixteenth of them."""
    code_bytes: int | None = None
    """PQ: bytes per vector; None: the largest divisor of the dimension up to 64."""
    seed: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def build_approximate(vectors: StoredVectors, kind: IndexType, parameters: IndexParameters, path: Path) -> None:
    """Write a faiss index over ``vectors`` to ``path``; HNSW stores them in the dtype of ``vectors``.

    Raises ConfigError if the parameters do not fit the vectors.
    """
    index = _hnsw(vectors, parameters) if kind == "hnsw" else _ivfpq(vectors, parameters)
    if not index.is_trained:
        index.train(_sample(vectors, parameters))
    for block in _blocks(vectors):
        index.add(block)
    faiss.write_index(index, str(path))


def _hnsw(vectors: StoredVectors, parameters: IndexParameters) -> Any:
    codes = _HNSW_CODES.get(vectors.codes.dtype.name)
    shape: Any = (vectors.dimension, *([] if codes is None else [codes]), parameters.links, faiss.METRIC_INNER_PRODUCT)
    index = (faiss.IndexHNSWFlat if codes is None else faiss.IndexHNSWSQ)(*shape)
    index.hnsw.efConstruction = parameters.ef_construction
    index.hnsw.efSearch = parameters.ef_search
    return index


def _ivfpq(vectors: StoredVectors, parameters: IndexParameters) -> Any:
    count, dimension = len(vectors), vectors.dimension
    if count < _PQ_MINIMUM:
        raise ConfigError(
            f"ivfpq learns its codes from the vectors: {count} are too few, it needs {_PQ_MINIMUM:,}",
            "choose index type flat",
        )
    size = parameters.code_bytes or max(n for n in range(1, min(64, dimension) + 1) if dimension % n == 0)
    if dimension % size:
        raise ConfigError(f"code_bytes is {size}, which does not divide the dimension {dimension}")
    lists = parameters.lists or max(1, round(4 * math.sqrt(count)))
    if lists * 4 > count:
        raise ConfigError(f"lists is {lists}, too many for {count} vectors", f"choose at most {count // 4}")
    coarse: Any = faiss.IndexFlatIP(dimension)
    index = faiss.IndexIVFPQ(coarse, dimension, lists, size, 8, faiss.METRIC_INNER_PRODUCT)
    index.own_fields = True
    coarse.this.disown()
    index.nprobe = parameters.nprobe or max(1, lists // 16)
    for learning in (index.cp, index.pq.cp):
        learning.seed = parameters.seed + 1234
        learning.min_points_per_centroid = 1  # else it prints a warning for every code
    return index


def _sample(vectors: StoredVectors, parameters: IndexParameters) -> Vectors:
    """Enough vectors to learn from; faiss itself uses at most 256 per centroid."""
    lists = parameters.lists or round(4 * math.sqrt(len(vectors)))
    wanted = min(len(vectors), max(64 * lists, 100_000))
    rows = np.random.default_rng(parameters.seed).choice(len(vectors), wanted, replace=False)
    return np.ascontiguousarray(vectors.read(np.sort(rows)))


def _blocks(vectors: StoredVectors) -> Iterator[Vectors]:
    for start in range(0, len(vectors), _BLOCK):
        yield np.ascontiguousarray(vectors.read(slice(start, start + _BLOCK)))
