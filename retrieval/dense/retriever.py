"""The index of dense encoders: how it is made, opened and searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from retrieval.dense.approximate import FILES, IndexParameters, IndexType
from retrieval.dense.build import DenseWriter
from retrieval.dense.search import FaissSearch, FlatSearch, VectorSearch, read_faiss
from retrieval.dense.vectors import DTYPES, open_vectors
from retrieval.encoders.dense import DENSE
from retrieval.encoders.family import Encoded, PassageEncoder
from retrieval.encoders.indexes import build_encoded, open_encoded, read_encoded_manifest
from retrieval.encoders.pieces import IndexWriter, Passages
from retrieval.encoders.retriever import EncoderRetriever, Found
from retrieval.indexes import IndexInfo
from sleuth.errors import ArtifactError, ConfigError, RetrieverError, did_you_mean
from sleuth.types import Passage


@dataclass(frozen=True, slots=True)
class DenseIndex:
    """Vectors that are searched by those of queries; ``name`` is the index's in error messages."""

    vectors: VectorSearch
    name: str

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Encoded, k: int) -> Found:
        """Scores and rows [queries, k]. Raises RetrieverError for a wrong dimension or NaN."""
        asked = queries.values.numpy()
        if asked.ndim != 2 or asked.shape[1] != self.vectors.dimension:
            raise RetrieverError(
                f"query vectors of shape {tuple(asked.shape)} do not fit {self.name}",
                f"its vectors have {self.vectors.dimension} dimensions",
            )
        if not np.isfinite(asked).all():
            raise RetrieverError(f"a query vector for {self.name} is not finite (NaN)", "check the encoder's weights")
        scores, rows = self.vectors.search(np.ascontiguousarray(asked, dtype=np.float32), k)
        if np.isnan(scores).any():
            row = int(rows[np.isnan(scores)][0])
            raise RetrieverError(f"vector {row} of {self.name} is not finite (NaN)", "the index is damaged: rebuild it")
        return scores, rows


class DenseIndexKind:
    """Vectors in a file, exact or through faiss."""

    kind = DENSE.kind
    format = 1
    usual: Mapping[str, object] = {"index_type": "flat", "dtype": "float32"}
    identity: Mapping[str, Any] = {"index_type": IndexType, "dtype": str, "parameters": dict}

    def writer(self, folder: Path, count: int, encoder: PassageEncoder, made: Mapping[str, Any]) -> IndexWriter:
        index_type, dtype = made["index_type"], made["dtype"]
        if index_type not in get_args(IndexType):
            raise ConfigError(f"no index type '{index_type}'", did_you_mean(index_type, get_args(IndexType)))
        if dtype not in DTYPES:
            raise ConfigError(f"vectors cannot be stored as '{dtype}'", did_you_mean(dtype, DTYPES))
        return DenseWriter(folder, count, encoder.dimension, index_type, dtype, made.get("parameters"))

    def load(
        self, index: Path, manifest: Mapping[str, Any], encoder: PassageEncoder, tuning: Mapping[str, Any]
    ) -> DenseIndex:
        chosen = {name: value for name, value in tuning.items() if value is not None}
        if manifest["index_type"] != "flat":
            faiss = read_faiss(index / FILES[manifest["index_type"]])
            return fitting(FaissSearch(faiss, **chosen), encoder, str(index))
        if chosen:
            tuned = min(chosen)
            raise ConfigError(f"{tuned} does not apply to {index}, an index of type flat", f"leave {tuned} out")
        return fitting(FlatSearch(open_vectors(index)), encoder, str(index))


DENSE_INDEX = DenseIndexKind()


def build_dense(
    corpus: str | Path,
    out: str | Path,
    encoder: PassageEncoder,
    *,
    index_type: IndexType = "flat",
    dtype: str = "float32",
    parameters: IndexParameters | None = None,
    **how: Any,
) -> IndexInfo:
    """Encode every passage of ``corpus`` and build an index of the vectors in the folder ``out``.

    ``how`` and errors are those of `build_index`; ConfigError also for an unknown type.
    """
    made = {"index_type": index_type, "dtype": dtype, **({} if parameters is None else {"parameters": parameters})}
    return build_encoded(DENSE_INDEX, corpus, out, encoder, made, **how)


def open_dense(
    index: str | Path, encoder: PassageEncoder, *, ef_search: int | None = None, nprobe: int | None = None
) -> EncoderRetriever:
    """The retriever over an index made by `build_dense`; errors are those of `open_encoded`."""
    return open_encoded(DENSE_INDEX, index, encoder, {"ef_search": ef_search, "nprobe": nprobe})


def dense_retriever(
    encoder: PassageEncoder, vectors: VectorSearch, passages: Passages, name: str, fingerprint: str
) -> EncoderRetriever:
    """A retriever over vectors from anywhere. Raises ArtifactError where they do not fit encoder or passages."""
    return EncoderRetriever(encoder, fitting(vectors, encoder, name), passages, name, fingerprint)


def fitting(vectors: VectorSearch, encoder: PassageEncoder, name: str) -> DenseIndex:
    if vectors.dimension != encoder.dimension:
        raise ArtifactError(
            f"the vectors of {name} have {vectors.dimension} dimensions, "
            f"those of the encoder {encoder.source} {encoder.dimension}",
            "open it with the encoder that made it",
        )
    return DenseIndex(vectors, name)


def stored_vectors(index: str | Path, encoder: PassageEncoder) -> tuple[list[Passage], Encoded]:
    """The passages of a flat index and their vectors, which must be those of ``encoder``.

    Raises ArtifactError if the index is from another passage tower, ConfigError if it keeps no vectors.
    """
    if encoder.family.kind != DENSE.kind:
        raise ConfigError(
            f"vectors are taken from a dense index only, and the encoder is of kind {encoder.family.kind}",
            "leave training.index out: its passages are encoded once",
        )
    kind = read_encoded_manifest(DENSE_INDEX, index)["index_type"]
    if kind != "flat":
        raise ConfigError(f"{index} is of type {kind}, which keeps no vectors", "use a flat index")
    found = open_dense(index, encoder)
    vectors = open_vectors(index).read(slice(None))
    return [found.passages[row] for row in range(len(found))], Encoded(torch.from_numpy(vectors))
