"""A training row of a retriever: a query with passages that answer it and passages that do not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from retrieval.passages import content_key
from sleuth.types import Passage


@dataclass(frozen=True, slots=True)
class Labels:
    """What one teacher says of a query; it is drawn with probability ``share``."""

    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class TrainingRow:
    """One query. ``positives`` are all its gold passages; ``answers`` are known for some data only.

    Scores are a teacher's, parallel to the passages; empty where there are none.
    ``labels``: teachers, one of which is drawn whenever the row is; ``positives`` are then also those of all of them.
    """

    id: str
    query: str
    positives: tuple[Passage, ...]
    negatives: tuple[Passage, ...] = ()
    answers: tuple[str, ...] = ()
    instruction: str = ""
    """What the query asks for, where it is not what the encoder's query prompt says."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """A teacher's score of passages, by content key; higher is better."""
    source: str = ""
    """The set that it is from, where there are several."""
    labels: tuple[Labels, ...] = ()
    weight: float = 1.0
    """How much it counts in the loss, beside the other rows."""
    query_form: str = ""
    """What its query is written in, which must be the encoder's; empty: it does not say."""
    share: float | None = None
    """Of its source in the mixture; None: sources are mixed as they come."""


def passages_of(rows: Iterable[TrainingRow]) -> list[Passage]:
    """Every distinct passage of the rows, in order of first appearance; equal content counts as the same passage."""
    found: dict[str, Passage] = {}
    for row in rows:
        for passage in (*row.positives, *row.negatives):
            found.setdefault(content_key(passage), passage)
    return list(found.values())
