"""What the score of a hit is made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one term of a query and one of a passage, which may be the same, give to the score of a hit.

    ``box``: where on the passage's picture, in pixels from its left upper corner: left, top, right, bottom.
    """

    query_term: str
    passage_term: str
    score: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the score of a hit is made of, largest part first; the parts add up to it."""

    parts: tuple[Contribution, ...]
