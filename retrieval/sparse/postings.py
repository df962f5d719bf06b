"""Postings on disk, memory-mapped: for each word the passages that have it, and its weight in each.

Passages come in blocks of 65,536, so that a posting is a uint16 and a weight, and one block's scores fit into the
caches of a CPU. Plain numpy files, so that anything can read them:

============== ===================================================================================
rows.npy       uint16 [postings]: a passage's place in its block, ascending within a block and word
weights.npy    uint8 or float32 [postings]; uint8 times the word's scale is the weight
starts.npy     int64 [blocks, words + 1]: where in the two files the postings of each word begin
scales.npy     float32 [words], for uint8: the word's largest weight / 255
============== ===================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sleuth.errors import ArtifactError

ROWS, WEIGHTS, STARTS, SCALES = "rows.npy", "weights.npy", "starts.npy", "scales.npy"
BLOCK = 65_536
"""Passages of a block; their places are uint16."""

Kept = Literal["uint8", "float32"]
KEPT: tuple[Kept, ...] = ("uint8", "float32")

Weights = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class StoredPostings:
    """``rows`` and ``codes`` [postings], ``starts`` [blocks, words + 1], ``scales`` [words] where codes are uint8."""

    count: int
    """Passages."""
    rows: NDArray[np.uint16]
    codes: NDArray[Any]
    starts: NDArray[np.int64]
    scales: Weights | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def words(self) -> int:
        return int(self.starts.shape[1]) - 1

    def as_kept(self, weights: Weights) -> Weights:
        """Weights [texts, words] as this index keeps them."""
        return weights if self.scales is None else quantised(weights, self.scales) * self.scales


def scales_of(largest: Weights) -> Weights:
    """The scale of each word from its ``largest`` weight; a word that no passage has gets the smallest one."""
    return (np.maximum(largest, 255 * np.finfo(np.float32).tiny) / 255).astype(np.float32)


def quantised(weights: Weights, scales: Weights) -> NDArray[np.uint8]:
    """8-bit codes of ``weights``; a weight above 0 stays above 0. The error is at most half a scale, and one scale
    for weights below that."""
    codes = np.rint(weights / scales).clip(0, 255)
    return np.where(weights > 0, np.maximum(codes, 1), 0).astype(np.uint8)


def open_postings(folder: str | Path, count: int) -> StoredPostings:
    """The postings of ``count`` passages in ``folder``. Raises ArtifactError if they are missing or damaged."""
    root = Path(folder)
    try:
        rows, codes, starts = (np.asarray(np.load(root / name, mmap_mode="r")) for name in (ROWS, WEIGHTS, STARTS))
        scales = np.load(root / SCALES) if codes.dtype == np.uint8 else None
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"the postings of {folder} cannot be read: {error}", "rebuild the index") from None
    blocks = -(-count // BLOCK)
    whole = rows.dtype == np.uint16 and rows.shape == codes.shape and starts.ndim == 2 and len(starts) == blocks
    if not whole or int(starts[-1, -1]) != len(rows) or (scales is not None and len(scales) + 1 != starts.shape[1]):
        raise ArtifactError(f"the postings of {folder} do not fit together", "rebuild the index")
    return StoredPostings(count, rows, codes, starts, scales)
