"""The index of multi-vector encoders: how it is made, opened and searched."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from pydantic import TypeAdapter, ValidationError

from retrieval.encoders.family import Encoded, PassageEncoder
from retrieval.encoders.indexes import build_encoded, damaged, open_encoded
from retrieval.encoders.multivector import MULTIVECTOR
from retrieval.encoders.pieces import IndexWriter
from retrieval.encoders.retriever import EncoderRetriever, Found
from retrieval.indexes import IndexInfo
from retrieval.multivector.build import Flat
from retrieval.multivector.config import MultiVectorSettings
from retrieval.multivector.explain import explain
from retrieval.multivector.muvera import Muvera
from retrieval.multivector.pooling import PoolingWriter, pooling_of
from retrieval.multivector.residual import Residual
from retrieval.multivector.search import TokenSearch
from sleuth.errors import ArtifactError, ConfigError, RetrieverError, did_you_mean
from sleuth.explanations import Explanation
from sleuth.types import Passage


class IndexType(Protocol):
    """A way to keep and to search token vectors; its fields are what an index of the type is made with.

    All have the field ``pool_factor``: how many times fewer vectors a passage keeps; None: it keeps all.
    """

    def writer(self, folder: Path, count: int, encoder: PassageEncoder) -> IndexWriter: ...

    def open(self, index: Path) -> TokenSearch: ...


TYPES: Mapping[str, type[Any]] = {"flat": Flat, "residual": Residual, "muvera": Muvera}


@dataclass(frozen=True, slots=True)
class MultiVectorIndex:
    """Passages that are searched by the token vectors of queries; ``name`` is the index's in error messages."""

    tokens: TokenSearch
    name: str

    def __len__(self) -> int:
        return len(self.tokens)

    def search(self, queries: Encoded, k: int) -> Found:
        """Scores and rows [queries, k]; a query without tokens, as a blank picture, finds nothing.

        Raises RetrieverError for a wrong dimension or NaN.
        """
        shape = tuple(queries.values.shape)
        if queries.mask is None or len(shape) != 3 or shape[2] != self.tokens.dimension:
            raise RetrieverError(
                f"query vectors of shape {shape} do not fit {self.name}",
                f"it takes several of {self.tokens.dimension} dimensions a query",
            )
        asked = [values[mask].float().numpy() for values, mask in zip(queries.values, queries.mask, strict=True)]
        if not all(np.isfinite(vectors).all() for vectors in asked):
            raise RetrieverError(f"a query vector for {self.name} is not finite (NaN)", "check the encoder's weights")
        scores = np.full((len(asked), k), -np.inf, np.float32)
        rows = np.full((len(asked), k), -1, np.int64)
        if worded := [place for place, vectors in enumerate(asked) if len(vectors)]:
            searched = [np.ascontiguousarray(asked[place]) for place in worded]
            scores[worded], rows[worded] = self.tokens.search(searched, k)
        if np.isnan(scores).any():
            row = int(rows[np.isnan(scores)][0])
            raise RetrieverError(
                f"a vector of passage {row} of {self.name} is not finite (NaN)", "the index is damaged: rebuild it"
            )
        return scores, rows

    def explain(self, encoder: PassageEncoder, query: str, passages: Sequence[Passage]) -> list[Explanation]:
        return explain(encoder, query, passages)


class MultiVectorIndexKind:
    """Token vectors in files."""

    kind = MULTIVECTOR.kind
    format = 1
    usual = MultiVectorSettings.MADE
    identity: Mapping[str, Any] = {"index_type": str, "parameters": dict}

    def writer(self, folder: Path, count: int, encoder: PassageEncoder, made: Mapping[str, Any]) -> IndexWriter:
        chosen = type_of(made)
        pooling = pooling_of(chosen.pool_factor, encoder)
        writer = PoolingWriter(chosen.writer(folder, count, encoder), pooling)
        return _Described(writer, made["index_type"], chosen, self.usual)

    def load(
        self, index: Path, manifest: Mapping[str, Any], encoder: PassageEncoder, tuning: Mapping[str, Any]
    ) -> MultiVectorIndex:
        if manifest["index_type"] not in TYPES:
            raise damaged(self, index, "index_type")
        try:
            chosen = TypeAdapter(TYPES[manifest["index_type"]]).validate_json(
                json.dumps(manifest["parameters"]), strict=True
            )
        except ValidationError:
            raise damaged(self, index, "parameters") from None
        tuned = {name: value for name, value in tuning.items() if value is not None}
        wrong = min(tuned.keys() - getattr(chosen, "TUNED", ()), default=None)
        if wrong is not None:
            kind = manifest["index_type"]
            raise ConfigError(f"{wrong} does not apply to {index}, an index of type {kind}", f"leave {wrong} out")
        found = chosen.open(index, **tuned)
        if found.dimension != encoder.dimension:
            raise ArtifactError(
                f"the vectors of {index} have {found.dimension} dimensions, those of the encoder {encoder.source} "
                f"{encoder.dimension}",
                "open it with the encoder that made it",
            )
        return MultiVectorIndex(found, str(index))


MULTIVECTOR_INDEX = MultiVectorIndexKind()


@dataclass(frozen=True, slots=True)
class _Described:
    """A writer whose manifest says in full how the index is made."""

    writer: IndexWriter
    index_type: str
    chosen: Any
    names: Mapping[str, object]

    @property
    def plan(self) -> Mapping[str, Any]:
        return {"index_type": self.index_type, **self.writer.plan}

    @property
    def intact(self) -> bool:
        return self.writer.intact

    def write(self, start: int, encoded: Encoded) -> None:
        self.writer.write(start, encoded)

    def finish(self) -> tuple[dict[str, Any], list[str]]:
        own, files = self.writer.finish()
        parameters = {name: own.get(name, value) for name, value in asdict(self.chosen).items()}
        every = {name: parameters.get(name) for name in self.names}
        return {**own, **every, "index_type": self.index_type, "parameters": parameters}, files


def type_of(made: Mapping[str, Any]) -> Any:
    """The type that ``made`` names, with what it says. Raises ConfigError for what is not of that type."""
    kind = made["index_type"]
    if kind not in TYPES:
        raise ConfigError(f"no index type '{kind}'", did_you_mean(str(kind), TYPES))
    given = {name: value for name, value in made.items() if name != "index_type" and value is not None}
    foreign = min(given.keys() - shaping(kind), default=None)
    if foreign is not None:
        raise ConfigError(f"{foreign} does nothing for an index of type {kind}", f"leave {foreign} out")
    return TYPES[kind](**given)


def shaping(index_type: str) -> set[str]:
    """The settings that an index of the type is made with."""
    return {"index_type", *(field.name for field in fields(TYPES[index_type]))}


def build_multivector(
    corpus: str | Path, out: str | Path, encoder: PassageEncoder, *, index_type: str = "flat", **how: Any
) -> IndexInfo:
    """Encode every passage of ``corpus`` and build an index of its token vectors in the folder ``out``.

    What of ``how`` does not shape the index, and errors, are those of `build_index`; ConfigError also for what does
    not fit the type.
    """
    made = {name: how.pop(name) for name in MULTIVECTOR_INDEX.usual if name in how}
    return build_encoded(MULTIVECTOR_INDEX, corpus, out, encoder, {"index_type": index_type, **made}, **how)


def open_multivector(index: str | Path, encoder: PassageEncoder, **tuning: Any) -> EncoderRetriever:
    """The retriever over an index made by `build_multivector`; errors are those of `open_encoded`."""
    return open_encoded(MULTIVECTOR_INDEX, index, encoder, tuning)
