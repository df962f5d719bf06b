"""Builds a dense index: vectors on disk or, optionally, an approximate index in their place."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from retrieval.dense.approximate import FILES, IndexParameters, IndexType, build_approximate
from retrieval.dense.vectors import DTYPES, SCALES, VECTORS, Dtype, create_vectors
from retrieval.encoders.build import build_index
from retrieval.encoders.family import DENSE, Encoded, PassageEncoder
from retrieval.indexes import IndexInfo
from sleuth.errors import ConfigError, did_you_mean

KIND = DENSE.kind
FORMAT = 1


def rebuild_command(
    index: str | Path, corpus: object = "CORPUS", encoder: object = "ENCODER", how: Mapping[str, Any] | None = None
) -> str:
    """The command that rebuilds ``index``; ``how`` is its manifest, or the relevant part of it."""
    command = f"sleuth index {corpus} --out {index} --kind {KIND} --encoder {encoder}"
    chosen = how or {}
    for option, key, usual in (("--index-type", "index_type", "flat"), ("--dtype", "dtype", "float32")):
        if chosen.get(key, usual) != usual:
            command += f" {option} {chosen[key]}"
    return f"{command} --overwrite"


def build_dense(
    corpus_path: str | Path,
    out: str | Path,
    encoder: PassageEncoder,
    *,
    index_type: IndexType = "flat",
    dtype: Dtype = "float32",
    parameters: IndexParameters | None = None,
    **options: Any,
) -> IndexInfo:
    """Encode every passage of ``corpus_path`` and build an index of the vectors in the folder ``out``.

    ``options`` and errors are those of `build_index`; ConfigError also for an unknown type.
    """
    if index_type not in get_args(IndexType):
        raise ConfigError(f"no index type '{index_type}'", did_you_mean(index_type, get_args(IndexType)))
    if dtype not in DTYPES:
        raise ConfigError(f"vectors cannot be stored as '{dtype}'", did_you_mean(dtype, DTYPES))

    def open_writer(folder: Path, count: int) -> DenseWriter:
        return DenseWriter(folder, count, encoder.dimension, index_type, dtype, parameters or IndexParameters())

    return build_index(corpus_path, out, encoder, open_writer, format_version=FORMAT, **options)


class DenseWriter:
    """Writes ``count`` vectors into ``folder``, which may already have some from an earlier run."""

    def __init__(
        self,
        folder: Path,
        count: int,
        dimension: int,
        index_type: IndexType = "flat",
        dtype: Dtype = "float32",
        parameters: IndexParameters | None = None,
    ) -> None:
        self.plan = {"dtype": dtype}
        self._files = [VECTORS] + ([SCALES] if dtype == "int8" else [])
        self.intact = all((folder / name).exists() for name in self._files)
        self.vectors = create_vectors(folder, count, dimension, dtype)
        self._folder, self._type, self._how = folder, index_type, parameters or IndexParameters()

    def write(self, start: int, encoded: Encoded) -> None:
        self.vectors.write(start, encoded.values.numpy())
        self.vectors.flush()

    def finish(self) -> tuple[dict[str, Any], list[str]]:
        """Replace the vectors by an approximate index, if one was requested."""
        fields = {"dimension": self.vectors.dimension, "index_type": self._type, **self.plan}
        if self._type == "flat":
            return {**fields, "parameters": {}}, self._files
        build_approximate(self.vectors, self._type, self._how, self._folder / FILES[self._type])
        return {**fields, "parameters": self._how.as_dict()}, [FILES[self._type]]
