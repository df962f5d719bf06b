"""Frozen passages while only the query tower learns: encoded once, or taken from an existing index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded, join
from retrieval.passages import content_key
from sleuth.types import Passage

OnCount = Callable[[int, int], None]
"""Called as (passages encoded, passages to encode)."""


@dataclass(frozen=True, slots=True)
class Table:
    """Passages and their encodings, row by row."""

    passages: Sequence[Passage]
    encoded: Encoded

    def places(self) -> dict[str, int]:
        """The first row of each content key."""
        return {content_key(p): row for row, p in reversed(list(enumerate(self.passages)))}

    def select(self, passages: Sequence[Passage]) -> Encoded:
        """The encodings of ``passages``, all of which must be in the table."""
        places = self.places()
        return self.encoded[[places[content_key(p)] for p in passages]]


def freeze(encoder: Encoder, needed: Sequence[Passage], known: Table | None, on_progress: OnCount) -> Table:
    """A table of distinct passages: all ``known`` ones, then the other ``needed`` ones."""
    rows = sorted(known.places().values()) if known else []
    passages = [known.passages[row] for row in rows] if known else []
    have = {content_key(p) for p in passages}
    missing = list({content_key(p): p for p in needed if content_key(p) not in have}.values())
    count: Callable[[int], None] = lambda done: on_progress(done, len(missing))
    new = encoder.encode_passages(missing, progress=count)
    return Table([*passages, *missing], join([known.encoded[rows], new]) if known else new)
