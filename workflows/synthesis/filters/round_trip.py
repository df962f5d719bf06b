"""A query has to find its passage again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from retrieval.combine.parts import reach
from retrieval.open import open_retriever
from retrieval.passages import content_key
from sleuth.evidence import parent_id
from workflows.synthesis.filters.base import Bench
from workflows.synthesis.filters.config import RoundTripSettings
from workflows.synthesis.writing import Written, is_written

log = logging.getLogger("sleuth.synthesize")


class RoundTrip:
    def __init__(self, settings: RoundTripSettings, bench: Bench) -> None:
        self._k = settings.k
        self._retriever = open_retriever(settings.retriever, cached=False, progress=bench.progress)

    def judge(self, rows: Sequence[Written]) -> list[str | None]:
        """Rows whose positives were written are not asked about: no retriever can find them."""
        asked = [place for place, row in enumerate(rows) if not all(map(is_written, row.row.positives))]
        if len(asked) < len(rows):
            log.info("round_trip: %d rows pass unasked, as their positives were written", len(rows) - len(asked))
        queries = [rows[place].row.query for place in asked]
        found = self._retriever.search(queries, reach(self._retriever, self._k)) if queries else []
        verdicts: list[str | None] = [None] * len(rows)
        for place, hits in zip(asked, found, strict=True):
            names = {parent_id(hit.passage.id) for hit in hits} | {content_key(hit.passage) for hit in hits}
            positives = rows[place].row.positives
            mine = {key for passage in positives for key in (parent_id(passage.id), content_key(passage))}
            verdicts[place] = None if names & mine else f"not among the first {self._k}"
        return verdicts

    def keep(self, rows: Sequence[Written]) -> None:
        """Nothing to remember."""

    def about(self) -> Mapping[str, object]:
        return {"retriever": self._retriever.fingerprint}
