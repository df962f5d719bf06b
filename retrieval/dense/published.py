"""Opens a published faiss index together with its corpus, without conversion.

Search-R1's release: ``e5_Flat.index`` or ``e5_HNSW64.index``, and ``wiki-18.jsonl``, whose line i is vector i. The
files are not copied; the offsets of the lines are computed once and kept in the user's cache.
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hub.cache import cache_folder
from retrieval.corpus import corpus_files, parse_line
from retrieval.dense.retriever import dense_retriever
from retrieval.dense.search import FaissSearch, FlatSearch, VectorSearch, flat_vectors, read_faiss
from retrieval.dense.vectors import StoredVectors, Vectors
from retrieval.encoders.family import PassageEncoder
from retrieval.encoders.modalities import check_passages
from retrieval.encoders.retriever import EncoderRetriever
from retrieval.passages import passage_text
from sleuth.artifacts import fingerprint_of
from sleuth.errors import ArtifactError, DataError
from sleuth.files import DELIMITERS, PARQUET, is_compressed, open_data, suffix_of
from sleuth.types import Passage

TOLERANCE = 0.05
"""How far a stored vector may be from the encoder's, as a fraction of the distance between two passages (1 - cosine):
half precision causes far smaller differences, another prompt larger ones."""

_SAMPLES = 8


def open_published(
    faiss_file: str | Path,
    corpus: str | Path,
    encoder: PassageEncoder,
    *,
    ef_search: int | None = None,
    nprobe: int | None = None,
) -> EncoderRetriever:
    """A retriever over ``faiss_file``, whose vector i is of row i of the jsonl file ``corpus``.

    A few stored vectors are compared with those that ``encoder`` computes for their passages. Raises ArtifactError if
    they differ (another encoder, pooling or prompt), if the counts do not match, or if a file is truncated.
    """
    index = read_faiss(faiss_file)
    passages = CorpusLines(corpus)
    vectors: VectorSearch = FaissSearch(index, ef_search=ef_search, nprobe=nprobe)
    flat = flat_vectors(index)
    if flat is not None:
        vectors = FlatSearch(StoredVectors(flat), owner=index)
    identity = {
        "faiss": _identity(Path(faiss_file)),
        "corpus": _identity(passages.path),
        "tuning": [ef_search, nprobe],
        "encoder": encoder.fingerprint,
    }
    retriever = dense_retriever(encoder, vectors, passages, str(faiss_file), fingerprint_of(identity))
    _check_sample(retriever, _stored(index, np.linspace(0, len(passages) - 1, _SAMPLES, dtype=np.int64)))
    return retriever


class CorpusLines:
    """The rows of one jsonl file by number, read from the memory-mapped file; blank lines do not count."""

    def __init__(self, path: str | Path) -> None:
        files = corpus_files(path)
        if len(files) != 1 or is_compressed(files[0]) or suffix_of(files[0]) in (PARQUET, *DELIMITERS):
            raise ArtifactError(
                f"{path} is not a single plain .jsonl file",
                "unpack, join or convert it: row i is vector i, and rows are found by their place in the file",
            )
        self.path = files[0]
        with open_data(self.path):  # says what it is if it is not text
            pass
        if not self.path.stat().st_size:
            raise DataError(f"{self.path} has no passages", "is it the corpus that the index was built from?")
        with self.path.open("rb") as file:
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._bounds = _line_bounds(self.path, self._lines)

    def __len__(self) -> int:
        return len(self._bounds)

    def __getitem__(self, ordinal: int) -> Passage:
        return parse_line(self.raw(ordinal), self.path, ordinal + 1)

    def raw(self, ordinal: int) -> bytes:
        start, end = self._bounds[ordinal].tolist()
        return self._lines[start:end]


def _line_bounds(path: Path, lines: mmap.mmap) -> NDArray[np.int64]:
    """Start and end [rows, 2] of every non-blank line."""
    folder = cache_folder() / "lines"
    kept = folder / f"{fingerprint_of(_identity(path))[:24]}.npy"
    if kept.is_file():
        found: NDArray[np.int64] = np.load(kept, mmap_mode="r")
        return found
    bounds = _scan(lines)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = kept.with_suffix(f".{os.getpid()}.npy")
        np.save(part, bounds)
        part.replace(kept)
    except OSError:  # an unwritable cache only costs time
        pass
    return bounds


def _scan(lines: mmap.mmap, block: int = 1 << 24) -> NDArray[np.int64]:
    blocks = ((start, np.frombuffer(lines[start : start + block], np.uint8)) for start in range(0, len(lines), block))
    breaks = [np.flatnonzero(content == ord("\n")) + start for start, content in blocks]
    last = [] if lines[-1:] == b"\n" else [[len(lines)]]
    ends = np.concatenate([[-1], *breaks, *last]).astype(np.int64)
    bounds = np.stack([ends[:-1] + 1, ends[1:]], axis=1)
    blank = [row for row in np.flatnonzero(bounds[:, 1] - bounds[:, 0] < 8) if not lines[slice(*bounds[row])].strip()]
    return np.delete(bounds, blank, axis=0)


def _check_sample(retriever: EncoderRetriever, stored: dict[int, Vectors]) -> None:
    passages, encoder = retriever.passages, retriever.encoder
    assert isinstance(passages, CorpusLines)
    rows = list(stored)
    if not rows:
        return
    held = np.stack([_unit(stored[row]) for row in rows])
    apart = float(np.median((1 - held @ held.T)[~np.eye(len(rows), dtype=bool)])) if len(rows) > 1 else 0.0
    read = [passages[row] for row in rows]
    check_passages(read, encoder.modalities, str(encoder.source))
    whole = [replace(passage, title="", text=_contents(passages, row)) for row, passage in zip(rows, read, strict=True)]
    encoded = [encoder.encode_passages(way).values.numpy() for way in (read, whole)]
    made = [np.stack([_unit(vector) for vector in vectors]) for vectors in encoded]
    off = min(float(np.median(1 - (held * vectors).sum(axis=1))) for vectors in made)
    if off > max(TOLERANCE * apart, 1e-3):
        settings = encoder.settings.model_dump()
        raise ArtifactError(
            f"the vectors of {retriever.name} are not those of {encoder.source} for its passages "
            f"(cosine {1 - off:.3f}): they are from another encoder, pooling or prompt",
            f"the passage prompt is {settings.get('passage_prompt')!r}, pooling {settings.get('pooling')}; "
            "set the right ones under encoder",
        )


def _stored(index: object, rows: NDArray[np.int64]) -> dict[int, Vectors]:
    """Some of the stored vectors; none if the index type cannot reconstruct them."""
    try:
        return {int(row): np.asarray(index.reconstruct(int(row))) for row in rows}  # type: ignore[attr-defined]
    except RuntimeError:
        return {}


def _contents(passages: CorpusLines, row: int) -> str:
    """The text of a row as it was originally encoded: all of ``contents``, with quotes and line break."""
    content = json.loads(passages.raw(row))
    return str(content.get("contents") or passage_text(passages[row]))


def _unit(vector: Vectors) -> Vectors:
    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _identity(path: Path) -> list[object]:
    """Identifies a file by name, size and time: digests of tens of gigabytes would take minutes."""
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    return [str(path.resolve()), found.st_size, found.st_mtime_ns]
