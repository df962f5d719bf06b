"""Builds a dense index: vectors on disk or, optionally, an approximate index in their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrieval.dense.approximate import FILES, IndexParameters, IndexType, build_approximate
from retrieval.dense.vectors import SCALES, VECTORS, Dtype, create_vectors
from retrieval.encoders.family import Encoded


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
