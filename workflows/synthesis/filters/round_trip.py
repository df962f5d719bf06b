"""A query has to find its passage again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from retrieval.combine.parts import reach
from retrieval.open import open_retriever
from retrieval.passages import content_key
from sleuth.evidence import parent_id
from workflows.synthesis.filters.base import Bench
from workflows.synthesis.filters.config import RoundTripSettings
from workflows.synthesis.writing import Written


class RoundTrip:
    def __init__(self, settings: RoundTripSettings, bench: Bench) -> None:
        self._k = settings.k
        self._retriever = open_retriever(settings.retriever, cached=False, progress=bench.progress)

    def judge(self, rows: Sequence[Written]) -> list[str | None]:
        found = self._retriever.search([row.row.query for row in rows], reach(self._retriever, self._k)) if rows else []
        verdicts: list[str | None] = []
        for row, hits in zip(rows, found, strict=True):
            names = {parent_id(hit.passage.id) for hit in hits} | {content_key(hit.passage) for hit in hits}
            mine = {key for passage in row.row.positives for key in (parent_id(passage.id), content_key(passage))}
            verdicts.append(None if names & mine else f"not among the first {self._k}")
        return verdicts

    def keep(self, rows: Sequence[Written]) -> None:
        """Nothing to remember."""

    def about(self) -> Mapping[str, object]:
        return {"retriever": self._retriever.fingerprint}
