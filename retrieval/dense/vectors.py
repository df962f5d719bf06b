"""Vectors of passages on disk, memory-mapped: float32, float16, or int8 with a scale for each vector.

``vectors.npy`` [passages, dimension]; for int8 also ``scales.npy`` [passages], a vector being code * scale. Plain
numpy files, so that anything can read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sleuth.errors import ArtifactError

VECTORS = "vectors.npy"
SCALES = "scales.npy"
DTYPES = ("float32", "float16", "int8")

Dtype = Literal["float32", "float16", "int8"]
Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoredVectors:
    """``codes`` [passages, dimension] as stored on disk; ``scales`` [passages] if they are int8."""

    codes: NDArray[Any]
    scales: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return int(self.codes.shape[0])

    @property
    def dimension(self) -> int:
        return int(self.codes.shape[1])

    def write(self, start: int, vectors: Vectors) -> None:
        """Write ``vectors`` to the rows from ``start`` on."""
        rows = slice(start, start + len(vectors))
        if self.scales is None:
            self.codes[rows] = vectors
            return
        scales = np.maximum(np.abs(vectors).max(axis=1), np.finfo(np.float32).tiny) / 127
        self.scales[rows] = scales
        self.codes[rows] = np.rint(vectors / scales[:, None])

    def read(self, rows: slice | NDArray[np.int64]) -> Vectors:
        """The vectors of ``rows`` as float32; float32 rows of a slice are not copied."""
        codes = self.codes[rows]
        if self.scales is None:
            return codes.astype(np.float32, copy=False)
        return codes.astype(np.float32) * self.scales[rows][:, None]

    def flush(self) -> None:
        """Flush written rows to disk."""
        for array in (self.codes, self.scales):
            if isinstance(array, np.memmap):
                array.flush()


def create_vectors(folder: str | Path, count: int, dimension: int, dtype: Dtype) -> StoredVectors:
    """Create room for ``count`` vectors, or open existing files of that shape; the file is sparse until written."""
    root = Path(folder)
    codes = _open_or_create(root / VECTORS, (count, dimension), np.dtype(dtype))
    scales = _open_or_create(root / SCALES, (count,), np.dtype("float32")) if dtype == "int8" else None
    return StoredVectors(codes, scales)


def open_vectors(folder: str | Path) -> StoredVectors:
    """The vectors of ``folder``. Raises ArtifactError if they are missing or truncated."""
    root = Path(folder)
    try:
        # copy-on-write: torch requires writable memory, and plain views index faster than memmaps
        codes = np.asarray(np.load(root / VECTORS, mmap_mode="c"))
        scales = np.asarray(np.load(root / SCALES, mmap_mode="c")) if codes.dtype == np.int8 else None
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"the vectors of {folder} cannot be read: {error}", "rebuild the index") from None
    if codes.ndim != 2 or codes.dtype.name not in DTYPES or (scales is not None and len(scales) != len(codes)):
        raise ArtifactError(f"{root / VECTORS} holds no vectors: {codes.dtype} {codes.shape}", "rebuild the index")
    return StoredVectors(codes, scales)


def _open_or_create(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if path.exists():
        found: NDArray[Any] = np.lib.format.open_memmap(path, mode="r+")
        if found.shape == shape and found.dtype == dtype:
            return found
        path.unlink()
    made: NDArray[Any] = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    return made
