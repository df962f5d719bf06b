"""Builds postings: each encoded piece is written as a run of its own, and the runs are turned round block by block."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from retrieval.encoders.family import Encoded
from retrieval.encoders.pieces import STATE
from retrieval.sparse.postings import BLOCK, ROWS, SCALES, STARTS, WEIGHTS, Kept, Weights, quantised, scales_of
from sleuth.errors import ArtifactError, DataError

_RUN = "run-{:012d}.npz"


class SparseWriter:
    """Writes ``count`` passages with weights for ``words`` words into ``folder``, which may already have some."""

    def __init__(self, folder: Path, count: int, words: int, weights: Kept = "uint8") -> None:
        self.plan: Mapping[str, Any] = {"weights": weights, "words": words}
        self._folder, self._count, self._words, self._weights = folder, count, words, weights

    @property
    def intact(self) -> bool:
        """Whether the runs reach as far as the record of the build says."""
        try:
            done = int(json.loads((self._folder / STATE).read_text(encoding="utf-8"))["done"])
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return sum(len(run.ends) for run in self._runs(done)) >= done

    def write(self, start: int, encoded: Encoded) -> None:
        values = encoded.values.numpy().astype(np.float32, copy=False)
        if (values < 0).any():
            raise DataError(
                "the encoder gave a word a weight below 0, which an index of postings cannot hold",
                "choose an encoder whose weights end in a ReLU",
            )
        if start == 0:  # whatever is there is of another build, perhaps in other pieces
            for path in self._folder.glob("run-*.npz"):
                path.unlink()
        rows, terms = values.nonzero()
        ends = np.searchsorted(rows, np.arange(len(values)), side="right")
        path = self._folder / _RUN.format(start)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(file, ends=ends.astype(np.int64), terms=terms.astype(np.int32), weights=values[rows, terms])
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)

    def finish(self) -> tuple[dict[str, Any], list[str]]:
        """Turn the runs into postings. Memory is one block."""
        largest, sizes = self._survey()
        scales = scales_of(largest) if self._weights == "uint8" else None
        rows = _new(self._folder / ROWS, (sum(sizes),), np.uint16)
        codes = _new(self._folder / WEIGHTS, (sum(sizes),), self._weights)
        starts = _new(self._folder / STARTS, (len(sizes), self._words + 1), np.int64)
        at = 0
        for number, size in enumerate(sizes):
            block = self._block(number)
            rows[at : at + size] = block.indices
            starts[number] = at + block.indptr.astype(np.int64)
            word = np.repeat(np.arange(self._words), np.diff(block.indptr))
            codes[at : at + size] = block.data if scales is None else quantised(block.data, scales[word])
            at += size
        for array in (rows, codes, starts):
            array.flush()
        if scales is not None:
            np.save(self._folder / SCALES, scales)
        fields = {"dimension": self._words, "weights": self._weights, "postings": at}
        return fields, [ROWS, WEIGHTS, STARTS, *([] if scales is None else [SCALES])]

    def _survey(self) -> tuple[Weights, list[int]]:
        """The largest weight of each word, and the number of postings of each block."""
        largest = np.zeros(self._words, np.float32)
        sizes = [0] * -(-self._count // BLOCK)
        stop = 0
        for run in self._runs(self._count):
            stop = run.stop
            np.maximum.at(largest, run.terms, run.weights)
            for number in range(run.start // BLOCK, (run.stop - 1) // BLOCK + 1):
                sizes[number] += len(run.part(number * BLOCK, (number + 1) * BLOCK).terms)
        if stop != self._count:
            raise ArtifactError(f"{self._folder} has weights of {stop:,} of {self._count:,} passages", "build it anew")
        return largest, sizes

    def _block(self, number: int) -> Any:
        """The weights of a block by word [words, passages]."""
        first, stop = number * BLOCK, min((number + 1) * BLOCK, self._count)
        parts = [run.part(first, stop) for run in self._runs(self._count, first, stop)]
        lengths = np.concatenate([np.diff(part.ends, prepend=0) for part in parts])
        ends = np.concatenate([[0], np.cumsum(lengths)])
        terms, weights = (np.concatenate([getattr(part, name) for part in parts]) for name in ("terms", "weights"))
        return csr_array((weights, terms, ends), shape=(stop - first, self._words)).tocsc()

    def _runs(self, stop: int, first: int = 0, end: int | None = None) -> Iterator[_Run]:
        """The runs that begin at passage 0 and follow one another, as far as ``stop``; those of [first, end) only."""
        files = sorted(self._folder.glob("run-*.npz"))
        begins = [int(path.stem.removeprefix("run-")) for path in files]
        expected = 0
        for path, start, following in zip(files, begins, [*begins[1:], stop], strict=True):
            if start >= (stop if end is None else end):
                return
            if end is not None and following <= first:
                continue
            try:
                with np.load(path) as kept:
                    run = _Run(start, kept["ends"], kept["terms"], kept["weights"])
            except (OSError, ValueError, KeyError):
                return
            if end is None and start != expected:
                return
            expected = run.stop
            yield run


class _Run:
    """The weights of one piece: ``ends`` [passages], where each one's words end; ``terms`` and ``weights``."""

    def __init__(
        self, start: int, ends: NDArray[np.int64], terms: NDArray[np.int32], weights: NDArray[np.float32]
    ) -> None:
        self.start, self.stop = start, start + len(ends)
        self.ends, self.terms, self.weights = ends, terms, weights

    def part(self, first: int, stop: int) -> _Run:
        """The passages of this run that lie in [first, stop)."""
        low, high = max(first - self.start, 0), min(stop, self.stop) - self.start
        begin = int(self.ends[low - 1]) if low else 0
        end = int(self.ends[high - 1]) if high else 0
        ends = self.ends[low:high] - begin
        return _Run(self.start + low, ends, self.terms[begin:end], self.weights[begin:end])


def _new(path: Path, shape: tuple[int, ...], dtype: Any) -> Any:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)
