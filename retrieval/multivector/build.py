"""Builds a flat multi-vector index: the token vectors of every passage, as they are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.encoders.family import Encoded, PassageEncoder
from retrieval.encoders.pieces import IndexWriter
from retrieval.multivector.search import ExactSearch, TokenSearch
from retrieval.multivector.tokens import BOUNDS, DTYPES, VECTORS, Bounds, RowFile, kept, open_tokens
from sleuth.errors import ConfigError, did_you_mean


@dataclass(frozen=True, slots=True)
class Flat:
    """Every token's vector is kept, and every passage is compared."""

    dtype: str = "float32"
    pool_factor: float | None = None

    def writer(self, folder: Path, count: int, encoder: PassageEncoder) -> IndexWriter:
        return TokenWriter(folder, count, encoder.dimension, self.dtype)

    def open(self, index: Path) -> TokenSearch:
        return ExactSearch(open_tokens(index))


class TokenWriter:
    """Writes the token vectors of ``count`` passages into ``folder``, which may have some from an earlier run."""

    def __init__(self, folder: Path, count: int, dimension: int, dtype: str) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"token vectors cannot be stored as '{dtype}'", did_you_mean(dtype, DTYPES))
        self.plan = {"dtype": dtype}
        self._dimension = dimension
        self._vectors, self._bounds = RowFile(folder / VECTORS, dimension, dtype), Bounds(folder, count)
        self.intact = self._bounds.intact and self._vectors.exists

    def write(self, start: int, encoded: Encoded) -> None:
        vectors, lengths = kept(encoded)
        self._vectors.write(self._bounds.add(start, lengths), vectors)

    def finish(self) -> tuple[dict[str, Any], list[str]]:
        count = self._bounds.tokens
        self._vectors.close(count)
        return {"tokens": count, "dimension": self._dimension}, [VECTORS, BOUNDS]
