"""What a retriever found, with every passage once."""

from __future__ import annotations

from collections.abc import Sequence
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
