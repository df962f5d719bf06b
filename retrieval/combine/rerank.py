"""Reranks the ``depth`` best hits of a retriever with a model that reads query and passage together.

Each query is scored only against its own hits; the pairs of all queries share batches, sorted by length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from retrieval.combine.parts import RERANK_DEPTH, check_depth, reach
from retrieval.documents import documents_of
from retrieval.indexes import check_k
from retrieval.passages import passage_text
from retrieval.rerankers.scorer import PairScorer
from retrieval.size import size_of
from sleuth.artifacts import fingerprint_of
from sleuth.errors import RetrieverError
from sleuth.explanations import Contribution, Explanation
from sleuth.hits import distinct
from sleuth.protocols import Documents, Retriever
from sleuth.query_forms import QueryForm
from sleuth.types import Hit


class RerankRetriever:
    """The hits of ``inner``, at most ``depth`` of them, reordered by ``scorer``."""

    def __init__(self, inner: Retriever, scorer: PairScorer, *, depth: int = RERANK_DEPTH) -> None:
        check_depth(depth)
        self.inner = inner
        self.scorer = scorer
        self.depth = depth

    @property
    def fingerprint(self) -> str:
        """Digest of the inner retriever, the model and the depth."""
        inner, model = self.inner.fingerprint, self.scorer.fingerprint
        return fingerprint_of({"kind": "rerank", "inner": inner, "model": model, "depth": self.depth})

    @property
    def query_form(self) -> QueryForm:
        """The inner retriever's. Raises AttributeError if it reads whatever it is given, as BM25 does."""
        form: QueryForm = self.inner.query_form  # type: ignore[attr-defined]
        return form

    @property
    def passages(self) -> int | None:
        """Passages searched; None if the inner retriever does not say."""
        return size_of(self.inner)

    @property
    def documents(self) -> Documents | None:
        """Reads whole documents; None if the inner retriever cannot."""
        return documents_of(self.inner)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most ``k`` hits per query with the model's scores, ties in the inner order."""
        k = check_k(k, self.passages)
        found = [distinct(hits) for hits in self.inner.search(queries, reach(self.inner, self.depth))]
        pairs = [(query, passage_text(hit.passage)) for query, hits in zip(queries, found, strict=True) for hit in hits]
        scores = self.scorer.score(pairs) if pairs else []
        if len(scores) != len(pairs) or not all(map(math.isfinite, scores)):
            raise RetrieverError("the reranker returned no finite score for some passages")
        remaining = iter(scores)
        return [_in_order([(next(remaining), hit) for hit in hits], k) for hits in found]

    def explain(self, query: str, hits: Sequence[Hit]) -> list[Explanation]:
        """The model's score is of one piece; said beside it is where the first stage had the passage."""
        found = {h.passage.id: h for h in distinct(self.inner.search([query], reach(self.inner, self.depth))[0])}
        before = [found[hit.passage.id] for hit in hits]
        return [
            Explanation((Contribution("reranker", f"rank {b.rank}, score {b.score:.4f} before", hit.score),))
            for hit, b in zip(hits, before, strict=True)
        ]


def _in_order(scored: list[tuple[float, Hit]], k: int) -> list[Hit]:
    best = sorted(scored, key=lambda pair: (-pair[0], pair[1].rank))[:k]
    return [Hit(hit.passage, score, rank) for rank, (score, hit) in enumerate(best, start=1)]
