"""Fuses several retrievers into one: each is asked for its ``depth`` best hits, and the lists are combined.

=====  =========================================================================================
rrf    sum of w / (k + rank) over the lists that hold the passage (Cormack, Clarke & Buettcher 2009)
sum    sum of w * score, each list's scores first scaled to [0, 1]; 0 where a list lacks the passage
dpr    sum of w * raw score, BM25 + 1.1 * dense (Karpukhin et al. 2020); a list that lacks the passage
       contributes its lowest score, as in pyserini's reproduction (Ma et al. 2021)
=====  =========================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from retrieval.combine.parts import HYBRID_DEPTH, check_depth, reach
from retrieval.documents import documents_of
from retrieval.indexes import check_k
from retrieval.size import size_of
from sleuth.artifacts import fingerprint_of
from sleuth.errors import ConfigError
from sleuth.explanations import Contribution, Explanation
from sleuth.hits import distinct
from sleuth.pictures import search_images, takes_images
from sleuth.protocols import Documents, Retriever
from sleuth.query_forms import QueryForm, form_of
from sleuth.types import Hit, Image, Passage

Fusion = Literal["rrf", "sum", "dpr"]
RRF_K = 60.0
DPR_LAMBDA = 1.1

Lists = Sequence[Sequence[Hit]]
"""The hits of one query, one list per part."""


class HybridRetriever:
    """Fuses the hits of ``parts``, which search the same passages.

    ``weights``, one per part, are by default 1 (rrf), 1/parts (sum), or 1 and 1.1 (dpr: BM25 first).
    Only the ``depth`` best hits of each part are fused, so no others are ever returned; ``rrf_k`` is
    the constant of rrf.
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
    def query_form(self) -> QueryForm:
        """That of the parts that have one; BM25 reads whatever the others do. Raises ConfigError if they differ."""
        forms = {form_of(part) for part in self.parts if hasattr(part, "query_form")}
        if len(forms) > 1:
            raise ConfigError(
                f"the parts of a hybrid retriever read queries in different forms: {', '.join(sorted(forms))}",
                "train them with one query_form",
            )
        return next(iter(forms), "query")

    @property
    def takes_images(self) -> bool:
        """Whether all parts take pictures as queries."""
        return all(map(takes_images, self.parts))

    @property
    def passages(self) -> int | None:
        """Passages searched; None if a part does not say."""
        sizes = [size_of(part) for part in self.parts]
        return None if None in sizes else max(size for size in sizes if size is not None)

    @property
    def documents(self) -> Documents | None:
        """Those of the first part that has any: all parts search the same passages."""
        return next((found for part in self.parts if (found := documents_of(part))), None)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most ``k`` hits per query with fused scores, ties in order of id.

        Raises ConfigError if ``k`` is below 1, or if two parts have different passages with the same id.
        """
        k = check_k(k, self.passages)
        return self._fused([part.search(queries, reach(part, self.depth)) for part in self.parts], k)

    def search_images(self, images: Sequence[Image], k: int) -> list[list[Hit]]:
        """Like ``search``, for each of ``images``. Raises ConfigError if a part reads no pictures of queries."""
        k = check_k(k, self.passages)
        self._shown([])  # a part that reads none is found before any is searched
        return self._fused(self._shown(images), k)

    def explain(self, query: str, hits: Sequence[Hit]) -> list[Explanation]:
        """What each part gives to the scores of ``hits``, with its own rank and score of the passage."""
        lists = [distinct(part.search([query], reach(part, self.depth))[0]) for part in self.parts]
        fused = FUSIONS[self.fusion]
        alone = [
            fused(lists, [w * (j == i) for j, w in enumerate(self.weights)], self.rrf_k) for i in range(len(lists))
        ]
        own = [{hit.passage.id: hit for hit in found} for found in lists]

        def parts_of(passage: str) -> list[Contribution]:
            return [
                Contribution(f"part {i + 1}", _place(own[i].get(passage)), alone[i].get(passage, 0.0))
                for i in range(len(lists))
            ]

        found = [sorted(parts_of(hit.passage.id), key=lambda part: -part.score) for hit in hits]
        return [Explanation(tuple(parts)) for parts in found]

    def _shown(self, images: Sequence[Image]) -> list[Lists]:
        """What each part finds by ``images``; an error names the part."""
        found: list[Lists] = []
        for number, part in enumerate(self.parts, start=1):
            try:
                found.append(search_images(part, images, reach(part, self.depth)))
            except ConfigError as error:
                raise ConfigError(f"part {number} of the hybrid: {error.message}", error.hint) from error
        return found

    def _fused(self, found: Sequence[Lists], k: int) -> list[list[Hit]]:
        """The hits of each query, from those of each part for each query."""
        own = [map(distinct, lists) for lists in found]
        return [self._fuse(lists, k) for lists in zip(*own, strict=True)]

    def _fuse(self, lists: Lists, k: int) -> list[Hit]:
        passages = _passages(lists)
        scores = FUSIONS[self.fusion](lists, self.weights, self.rrf_k)
        best = sorted(scores, key=lambda identifier: (-scores[identifier], identifier))[:k]
        return [Hit(passages[identifier], scores[identifier], rank) for rank, identifier in enumerate(best, start=1)]


def _place(hit: Hit | None) -> str:
    return "not found" if hit is None else f"rank {hit.rank}, score {hit.score:.4f}"


def reciprocal_rank(lists: Lists, weights: Sequence[float], k: float) -> dict[str, float]:
    """Fused score by passage id, from ranks alone."""
    scores: dict[str, float] = {}
    for hits, weight in zip(lists, weights, strict=True):
        for hit in hits:
            scores[hit.passage.id] = scores.get(hit.passage.id, 0.0) + weight / (k + hit.rank)
    return scores


def normalised_sum(lists: Lists, weights: Sequence[float], _k: float = RRF_K) -> dict[str, float]:
    """Fused score by passage id; if all scores of a list are equal, each of its passages gets 1."""
    scores: dict[str, float] = {}
    for hits, weight in zip(lists, weights, strict=True):
        lowest, highest = _bounds(hits)
        for hit in hits:
            share = (hit.score - lowest) / (highest - lowest) if highest > lowest else 1.0
            scores[hit.passage.id] = scores.get(hit.passage.id, 0.0) + weight * share
    return scores


def raw_sum(lists: Lists, weights: Sequence[float], _k: float = RRF_K) -> dict[str, float]:
    """Fused score by passage id; see ``dpr`` above. A list without hits contributes 0 to every passage."""
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
    """Raise ConfigError for invalid fusion parameters."""
    if parts < 2:
        raise ConfigError(f"a hybrid retriever has {parts} parts, it needs two or more", "parts: [a, b]")
    if fusion == "dpr" and weights is None and parts != 2:
        raise ConfigError(f"fusion dpr has no default weights for {parts} parts", "give weights, one per part")
    if weights is not None and len(weights) != parts:
        raise ConfigError(f"{len(weights)} weights do not match {parts} parts", "give one per part")
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
            pictures = {passage.image for passage in (known, hit.passage) if passage.image is not None}
            if known.text != hit.passage.text or len(pictures) > 1:
                raise ConfigError(
                    f"the parts of a hybrid retriever have different passages with the id {known.id!r}",
                    "build their indexes from the same corpus",
                )
    return passages
