"""What a retriever is measured on: queries, judgements, and the passages that a query must not find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from retrieval.evaluation.judgements import Qrels
from retrieval.evaluation.runs import Run
from sleuth.types import Question


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Queries by id with their judgements, and where the passages are if that is known.

    ``excluded``: by query, ids that are no part of its ranking, such as BRIGHT's. ``not_itself``: nor is a passage
    with the id of the query, as in BEIR, where ArguAna's and Quora's queries are passages themselves. ``split`` is that
    of the judgements, ``corpus`` a path or the name of a dataset of the hub.
    """

    name: str
    queries: Mapping[str, Question]
    qrels: Qrels
    corpus: str | None = None
    excluded: Mapping[str, frozenset[str]] = field(default_factory=dict)
    not_itself: bool = False
    split: str = "test"

    @property
    def judged(self) -> bool:
        """Whether any passage is judged as relevant; answers alone judge what is found."""
        return any(self.qrels.values())

    @property
    def answers(self) -> dict[str, tuple[str, ...]]:
        """Known answers, by judged query."""
        return {query: q.answers for query in self.qrels if (q := self.queries.get(query)) and q.answers}

    @property
    def levels(self) -> dict[str, str]:
        """The level of each judged query that has one (`judgements.level_of`)."""
        return {query: q.kind for query in self.qrels if (q := self.queries.get(query)) and q.kind}

    @property
    def asked(self) -> list[Question]:
        """The queries to search for: those that are judged, or all if none is."""
        return [self.queries[query] for query in self.qrels or self.queries if query in self.queries]

    def left_out(self, query: str) -> frozenset[str]:
        """Ids of passages that are no part of the ranking of ``query``."""
        itself = frozenset((query,) if self.not_itself else ())
        return self.excluded.get(query, frozenset()) | itself


def without_left_out(run: Run, chosen: RetrievalSet) -> Run:
    """``run`` without the passages that are no part of its rankings."""
    kept: Run = {}
    for query, scores in run.items():
        out = chosen.left_out(query)
        kept[query] = {passage: score for passage, score in scores.items() if passage not in out} if out else scores
    return kept
