"""Both halves of PromptReps in one folder, written from one pass over the corpus and searched with one a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.combine.hybrid import FUSIONS, RRF_K, check_parameters
from retrieval.combine.parts import HYBRID_DEPTH
from retrieval.dense.build import DenseWriter
from retrieval.dense.retriever import DenseIndex
from retrieval.dense.search import FlatSearch
from retrieval.dense.vectors import open_vectors
from retrieval.encoders.family import Encoded, PassageEncoder
from retrieval.encoders.pieces import IndexWriter
from retrieval.encoders.retriever import Found
from retrieval.promptreps.encoder import PromptRepsEncoder
from retrieval.promptreps.terms import unpack
from retrieval.sparse.build import SparseWriter
from retrieval.sparse.postings import open_postings
from retrieval.sparse.retriever import SparseIndex
from retrieval.sparse.search import PostingSearch
from sleuth.errors import ArtifactError, ConfigError, RetrieverError
from sleuth.explanations import Explanation
from sleuth.types import Hit, Passage


class BothWriter:
    """Writes vectors as a dense index does, and whole weights as a sparse one, into one folder."""

    def __init__(self, folder: Path, count: int, encoder: PromptRepsEncoder, dtype: Any) -> None:
        self._hidden, self._words = encoder.hidden, encoder.vocabulary
        self._dense = DenseWriter(folder, count, encoder.hidden, "flat", dtype)
        self._sparse = SparseWriter(folder, count, encoder.vocabulary, "float32")
        self.plan = {**self._dense.plan, **self._sparse.plan}

    @property
    def intact(self) -> bool:
        return self._dense.intact and self._sparse.intact

    def write(self, start: int, encoded: Encoded) -> None:
        vectors, terms = unpack(encoded, self._hidden)
        self._dense.write(start, Encoded(vectors.contiguous()))
        self._sparse.write(start, Encoded(terms.as_words(self._words)))

    def finish(self) -> tuple[dict[str, Any], list[str]]:
        fields, files = self._dense.finish()
        beside, more = self._sparse.finish()
        return {**fields, "vocabulary": self._words, "postings": beside["postings"]}, [*files, *more]


@dataclass(frozen=True, slots=True)
class BothIndex:
    """Searches one half, or fuses the ``depth`` best of both."""

    vectors: DenseIndex
    postings: SparseIndex
    parts: str = "both"
    fusion: str = "sum"
    weights: tuple[float, float] = (0.5, 0.5)
    rrf_k: float = RRF_K
    depth: int = HYBRID_DEPTH

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, queries: Encoded, k: int) -> Found:
        dimension = self.vectors.vectors.dimension
        if queries.values.ndim != 2 or queries.values.shape[1] <= dimension:
            raise RetrieverError(f"the queries are not of the model that made {self.vectors.name}")
        halves, terms = unpack(queries, dimension)
        vectors, words = Encoded(halves.contiguous()), Encoded(terms.as_words(self.postings.found_in.postings.words))
        if self.parts == "dense":
            return self.vectors.search(vectors, k)
        if self.parts == "sparse":
            return self.postings.search(words, k)
        depth = min(self.depth, len(self))
        return self._fused(self.vectors.search(vectors, depth), self.postings.search(words, depth), k)

    def explain(self, encoder: PassageEncoder, query: str, passages: Sequence[Passage]) -> list[Explanation]:
        """The words that made the score, where the sparse half alone is searched. Raises ConfigError for others."""
        if self.parts != "sparse":
            raise ConfigError(
                f"{self.postings.name} is searched by parts: {self.parts}, whose scores are no sums over words",
                "--explain takes parts: sparse",
            )
        assert isinstance(encoder, PromptRepsEncoder)
        return self.postings.explain(encoder.as_part("sparse"), query, passages)

    def _fused(self, dense: Found, sparse: Found, k: int) -> Found:
        count = len(dense[0])
        scores, rows = np.full((count, k), -np.inf, np.float32), np.full((count, k), -1, np.int64)
        fuse = FUSIONS[self.fusion]  # type: ignore[index]
        for query in range(count):
            lists = [_as_hits(found[0][query], found[1][query]) for found in (dense, sparse)]
            made = {int(name): score for name, score in fuse(lists, self.weights, self.rrf_k).items()}
            best = sorted(made, key=lambda row: (-made[row], row))[:k]
            rows[query, : len(best)], scores[query, : len(best)] = best, [made[row] for row in best]
        return scores, rows


def _as_hits(scores: Any, rows: Any) -> list[Hit]:
    """Passages by number alone, as the fusions take them."""
    pairs = [(row, score) for row, score in zip(rows.tolist(), scores.tolist(), strict=True) if row >= 0]
    return [Hit(Passage(str(row), "", ""), score, rank) for rank, (row, score) in enumerate(pairs, start=1)]


class PromptRepsIndexKind:
    """Vectors and postings side by side."""

    kind = "promptreps"
    format = 1
    usual: Mapping[str, object] = {"dtype": "float32"}
    identity: Mapping[str, Any] = {"dtype": str, "dimension": int}

    def writer(self, folder: Path, count: int, encoder: PassageEncoder, made: Mapping[str, Any]) -> IndexWriter:
        if not isinstance(encoder, PromptRepsEncoder):
            raise ConfigError(f"{encoder.source} gives no two parts", "choose an encoder of kind promptreps")
        return BothWriter(folder, count, encoder, made["dtype"])

    def load(
        self, index: Path, manifest: Mapping[str, Any], encoder: PassageEncoder, tuning: Mapping[str, Any]
    ) -> BothIndex:
        chosen = {name: value for name, value in tuning.items() if value is not None}
        if chosen.get("fusion") == "rrf":
            chosen = {"weights": (1.0, 1.0), **chosen}
        assert isinstance(encoder, PromptRepsEncoder)
        if "fusion" in chosen:
            check_parameters(2, chosen["fusion"], chosen.get("weights"), chosen["rrf_k"], chosen.get("depth", 1))
        vectors = FlatSearch(open_vectors(index))
        if not vectors.dimension == manifest["dimension"] == encoder.hidden:
            raise ArtifactError(f"the vectors of {index} do not fit its manifest or its encoder", "rebuild the index")
        postings = SparseIndex(PostingSearch(open_postings(index, manifest["passages"])), str(index))
        return BothIndex(DenseIndex(vectors, str(index)), postings, **chosen)


PROMPTREPS_INDEX = PromptRepsIndexKind()
