"""What a retriever found, with every passage once: within the hits of a query, and within those of a turn."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from sleuth.types import Hit


def distinct(hits: Sequence[Hit]) -> list[Hit]:
    """``hits`` without repeated passage ids: the better score is kept, best first, ranks from 1.

    A list without repeats is returned as it is; retrievers from outside may return the same passage twice.
    """
    best: dict[str, Hit] = {}
    for hit in hits:
        known = best.get(hit.passage.id)
        if known is None or hit.score > known.score:
            best[hit.passage.id] = hit
    if len(best) == len(hits):
        return list(hits)
    ordered = sorted(best.values(), key=lambda hit: -hit.score)
    return [replace(hit, rank=rank) for rank, hit in enumerate(ordered, start=1)]


def without(hits: Sequence[Hit], out: Collection[str]) -> list[Hit]:
    """``hits`` without those whose passage ids are in ``out``, ranks from 1."""
    kept = [hit for hit in hits if hit.passage.id not in out]
    return kept if len(kept) == len(hits) else [replace(hit, rank=rank) for rank, hit in enumerate(kept, start=1)]


def first_seen(found: Sequence[Sequence[Hit]]) -> list[list[Hit]]:
    """The hits of several queries, each passage only with the first query that has found it; order and ranks stay."""
    seen: set[str] = set()
    fresh: list[list[Hit]] = []
    for hits in found:
        fresh.append([])
        for hit in hits:
            if hit.passage.id not in seen:
                seen.add(hit.passage.id)
                fresh[-1].append(hit)
    return fresh
