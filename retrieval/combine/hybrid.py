"""Several retrievers as one: each is asked for its ``depth`` best hits, and the lists are fused.

=====  =========================================================================================
rrf    sum of w / (k + rank) over the lists that hold the passage (Cormack, Clarke & Buettcher 2009)
sum    sum of w * score, each list's scores first stretched to [0, 1]; 0 where a list lacks the passage
dpr    sum of w * score as they are, BM25 + 1.1 * dense (Karpukhin et al. 2020); a list that lacks the
       passage stands for its own lowest score, as in pyserini's reproduction (Ma et al. 2021)
=====  =========================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from retrieval.combine.parts import HYBRID_DEPTH, check_depth, reach
from retrieval.indexes import check_k
from retrieval.size import size_of
from sleuth.artifacts import fingerprint_of
from sleuth.errors import ConfigError
from sleuth.protocols import Retriever
from sleuth.types import Hit, Passage

Fusion = Literal["rrf", "sum", "dpr"]
RRF_K = 60.0
DPR_LAMBDA = 1.1

Lists = Sequence[Sequence[Hit]]
"""The hits of one query, a list a part."""


class HybridRetriever:
    """Fuses the hits of ``parts``, which search the same passages.

    ``weights``, one a part: by default 1 (rrf), an equal share (sum), or 1 and 1.1 (dpr: BM25 first).
    At most the ``depth`` best of each part take part, so that no more than those are ever returned;
    ``rrf_k`` is the constant of rrf.
    """

    def __init__(
        self,
        parts: Sequence[Retriever],
        *,
        fusion: Fusion = "rrf",
        weights: Sequence[float] | None = None,
        rrf_k: float = RRF_K,
        depth: int = HYBRID_DEPTH,
    ) -> None:
        check_parameters(len(parts), fusion, weights, rrf_k, depth)
        self.parts = tuple(parts)
        self.fusion = fusion
        self.weights = tuple(weights or _default_weights(fusion, len(parts)))
        self.rrf_k = rrf_k
        self.depth = depth

    @property
    def fingerprint(self) -> str:
        """Digest of the parts' fingerprints and of how they are fused."""
        identity: dict[str, Any] = {
            "kind": "hybrid",
            "fusion": self.fusion,
            "weights": self.weights,
            "depth": self.depth,
        }
        if self.fusion == "rrf":
            identity["rrf_k"] = self.rrf_k
        return fingerprint_of({**identity, "parts": [part.fingerprint for part in self.parts]})

    @property
    def passages(self) -> int | None:
        """Passages searched; None when a part does not tell."""
        sizes = [size_of(part) for part in self.parts]
        return None if None in sizes else max(size for size in sizes if size is not None)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most ``k`` hits a query with fused scores, equal ones in order of id.

        Raises ConfigError when ``k`` is impossible, or when two parts hold different passages under one id.
        """
        check_k(k, self.passages)
        found = [part.search(queries, reach(part, self.depth)) for part in self.parts]
        return [self._fuse(lists, k) for lists in zip(*found, strict=True)]

    def _fuse(self, lists: Lists, k: int) -> list[Hit]:
        passages = _passages(lists)
        scores = FUSIONS[self.fusion](lists, self.weights, self.rrf_k)
        best = sorted(scores, key=lambda identifier: (-scores[identifier], identifier))[:k]
        return [Hit(passages[identifier], scores[identifier], rank) for rank, identifier in enumerate(best, start=1)]


def reciprocal_rank(lists: Lists, weights: Sequence[float], k: float) -> dict[str, float]:
    """Fused score by passage id, from ranks alone."""
    scores: dict[str, float] = {}
    for hits, weight in zip(lists, weights, strict=True):
        for hit in hits:
            scores[hit.passage.id] = scores.get(hit.passage.id, 0.0) + weight / (k + hit.rank)
    return scores


def normalised_sum(lists: Lists, weights: Sequence[float], _k: float = RRF_K) -> dict[str, float]:
    """Fused score by passage id; a list whose scores are all equal counts 1 for each of its passages."""
    scores: dict[str, float] = {}
    for hits, weight in zip(lists, weights, strict=True):
        lowest, highest = _bounds(hits)
        for hit in hits:
            share = (hit.score - lowest) / (highest - lowest) if highest > lowest else 1.0
            scores[hit.passage.id] = scores.get(hit.passage.id, 0.0) + weight * share
    return scores


def raw_sum(lists: Lists, weights: Sequence[float], _k: float = RRF_K) -> dict[str, float]:
    """Fused score by passage id; see ``dpr`` above. A list without hits counts 0 for every passage."""
    everything = {hit.passage.id for hits in lists for hit in hits}
    scores = dict.fromkeys(everything, 0.0)
    for hits, weight in zip(lists, weights, strict=True):
        own = {hit.passage.id: hit.score for hit in hits}
        lowest, _ = _bounds(hits)
        for identifier in everything:
            scores[identifier] += weight * own.get(identifier, lowest)
    return scores


FUSIONS: dict[Fusion, Callable[[Lists, Sequence[float], float], dict[str, float]]] = {
    "rrf": reciprocal_rank,
    "sum": normalised_sum,
    "dpr": raw_sum,
}


def check_parameters(parts: int, fusion: str, weights: Sequence[float] | None, rrf_k: float, depth: int) -> None:
    """Raise ConfigError for a fusion that means nothing."""
    if parts < 2:
        raise ConfigError(f"a hybrid retriever has {parts} parts, it needs two or more", "parts: [a, b]")
    if fusion == "dpr" and weights is None and parts != 2:
        raise ConfigError(f"fusion dpr has no weights for {parts} parts", "give weights, one a part")
    if weights is not None and len(weights) != parts:
        raise ConfigError(f"{len(weights)} weights do not fit {parts} parts", "give one a part")
    if weights is not None and not (all(math.isfinite(w) and w >= 0 for w in weights) and any(weights)):
        raise ConfigError(f"weights are {list(weights)}, they must be 0 or more and not all 0")
    if not (math.isfinite(rrf_k) and rrf_k >= 0):
        raise ConfigError(f"rrf_k is {rrf_k}, it must be 0 or more", f"{RRF_K:g} is usual")
    check_depth(depth)


def _default_weights(fusion: Fusion, parts: int) -> tuple[float, ...]:
    if fusion == "dpr":
        return (1.0, DPR_LAMBDA)
    return (1.0,) * parts if fusion == "rrf" else (1.0 / parts,) * parts


def _bounds(hits: Sequence[Hit]) -> tuple[float, float]:
    scores = [hit.score for hit in hits]
    return (min(scores), max(scores)) if scores else (0.0, 0.0)


def _passages(lists: Lists) -> dict[str, Passage]:
    passages: dict[str, Passage] = {}
    for hits in lists:
        for hit in hits:
            known = passages.setdefault(hit.passage.id, hit.passage)
            if known.text != hit.passage.text:
                raise ConfigError(
                    f"the parts of a hybrid retriever hold different passages under the id {known.id!r}",
                    "make their indexes from the same corpus",
                )
    return passages
