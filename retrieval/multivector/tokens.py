"""Token vectors of passages on disk, memory-mapped: those of a passage stand together, in the order of its tokens.

``token_vectors.npy`` [tokens, dimension] in float32 or float16, and ``token_bounds.npy`` [passages + 1]: passage i has
the tokens from bound i to bound i + 1. Plain numpy files, so that anything can read them.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders.family import Encoded
from sleuth.errors import ArtifactError

VECTORS = "token_vectors.npy"
BOUNDS = "token_bounds.npy"
DTYPES = ("float32", "float16")

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

_HEADER = 128
"""Bytes that numpy's header takes, with room for any number of rows."""


class TokenVectors(Protocol):
    """Token vectors of passages by number, as they were stored or as they come out of their codes."""

    @property
    def dimension(self) -> int: ...

    @property
    def bounds(self) -> Rows: ...

    def read(self, tokens: slice | Rows) -> Vectors:
        """The vectors [n, dimension] of these tokens, in float32."""
        ...


@dataclass(frozen=True, slots=True)
class StoredTokens:
    """``vectors`` [tokens, dimension] as stored, ``bounds`` [passages + 1]."""

    vectors: NDArray[Any]
    bounds: Rows

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])

    def read(self, tokens: slice | Rows) -> Vectors:
        found: Vectors = self.vectors[tokens].astype(np.float32, copy=False)
        return found


class RowFile:
    """A ``.npy`` file of rows that are appended; what stands from a row on may be replaced. Closed by its header."""

    def __init__(self, path: Path, width: int, dtype: str) -> None:
        self.path, self.dtype, self._width = path, np.dtype(dtype), width

    @property
    def exists(self) -> bool:
        return self.path.is_file()

    def write(self, start: int, rows: NDArray[Any]) -> None:
        """Let ``rows`` [n, width] follow the first ``start`` rows; they are durable on return."""
        with self.path.open("r+b" if self.exists else "w+b") as file:
            file.truncate(self._place(start))
            file.seek(self._place(start))
            file.write(np.ascontiguousarray(rows, dtype=self.dtype).tobytes())
            file.flush()
            os.fsync(file.fileno())

    def close(self, count: int) -> None:
        """Write the header of ``count`` rows. A width of 0 stands for single numbers."""
        shape = (count, self._width) if self._width else (count,)
        header = io.BytesIO()
        content = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, content)
        assert len(header.getvalue()) == _HEADER
        with self.path.open("r+b" if self.exists else "w+b") as file:
            file.write(header.getvalue())
            file.truncate(self._place(count))

    def _place(self, row: int) -> int:
        return _HEADER + row * max(self._width, 1) * self.dtype.itemsize


class Bounds:
    """Where the tokens of each of ``count`` passages begin, written passage by passage."""

    def __init__(self, folder: Path, count: int) -> None:
        self._path, self._count = folder / BOUNDS, count
        self.intact = self._open() is not None
        if not self.intact:
            made = np.lib.format.open_memmap(self._path, mode="w+", dtype=np.int64, shape=(count + 1,))
            made.flush()

    def add(self, start: int, lengths: Rows) -> int:
        """Passages of ``lengths`` tokens follow the first ``start`` ones; returns the first of their tokens."""
        bounds = np.lib.format.open_memmap(self._path, mode="r+")
        bounds[start + 1 : start + 1 + len(lengths)] = bounds[start] + np.cumsum(lengths)
        bounds.flush()
        return int(bounds[start])

    @property
    def tokens(self) -> int:
        return int(np.load(self._path, mmap_mode="r")[-1])

    def _open(self) -> NDArray[Any] | None:
        try:
            found: NDArray[Any] = np.load(self._path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        return found if found.shape == (self._count + 1,) else None


def kept(encoded: Encoded) -> tuple[Vectors, Rows]:
    """The token vectors that count [tokens, dimension], and how many each text has."""
    assert encoded.mask is not None
    vectors: Vectors = encoded.values[encoded.mask].numpy()
    lengths: Rows = encoded.mask.sum(1).numpy()
    return vectors, lengths


def open_tokens(folder: str | Path) -> StoredTokens:
    """The token vectors of ``folder``. Raises ArtifactError if they are missing or damaged."""
    vectors, bounds = open_array(folder, VECTORS), open_bounds(folder)
    if vectors.ndim != 2 or vectors.dtype.name not in DTYPES or len(vectors) != bounds[-1]:
        raise ArtifactError(f"{Path(folder) / VECTORS} holds no such vectors: {vectors.dtype} {vectors.shape}")
    return StoredTokens(vectors, bounds)


def open_bounds(folder: str | Path) -> Rows:
    bounds = np.array(open_array(folder, BOUNDS))
    if bounds.ndim != 1 or bounds.dtype != np.int64 or (np.diff(bounds) < 0).any():
        raise ArtifactError(f"{Path(folder) / BOUNDS} is damaged", "rebuild the index")
    return bounds


def open_array(folder: str | Path, name: str) -> NDArray[Any]:
    """A numpy file of an index, mapped. Raises ArtifactError if it cannot be read."""
    try:
        # copy-on-write: torch requires writable memory, and plain views index faster than memmaps
        return np.asarray(np.load(Path(folder) / name, mmap_mode="c"))
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{Path(folder) / name} cannot be read: {error}", "rebuild the index") from None


def tokens_of(bounds: Rows, rows: Rows) -> tuple[Rows, Rows]:
    """The tokens of the passages ``rows``, one passage after another, and how many each has."""
    lengths = bounds[rows + 1] - bounds[rows]
    before = np.cumsum(lengths) - lengths
    tokens = np.repeat(bounds[rows] - before, lengths) + np.arange(int(lengths.sum()))
    return tokens, lengths
