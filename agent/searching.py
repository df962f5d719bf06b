"""The searches of a round: what every episode asks, as few calls as can be, and to each what it may have.

An environment may refuse passages (``SelectiveEnvironment``): its queries are searched deeper, so that enough are left.
How deep depends on the episode alone, not on what is searched beside it; queries of one depth share a call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from agent.episode import Episode
from sleuth.hits import distinct, without
from sleuth.protocols import Retriever, SelectiveEnvironment
from sleuth.query_forms import QueryForm, last_thought, written
from sleuth.types import Hit, Search

Answers = Mapping[tuple[str, int], Sequence[Hit]]
"""Hits by query and depth."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """The queries of a turn with the depth of each; ``unwanted``: what they must not find, None if all is welcome."""

    asked: Sequence[tuple[str, int]]
    unwanted: Collection[str] | None
    top_k: int

    def choose(self, answers: Answers) -> list[list[Hit]]:
        """The hits of each query: ``top_k`` that are neither unwanted nor another query's of this turn before it."""
        if self.unwanted is None:
            return [list(answers[one]) for one in self.asked]
        out, chosen = set(self.unwanted), []
        for one in self.asked:
            chosen.append(without(answers[one], out)[: self.top_k])
            out.update(hit.passage.id for hit in chosen[-1])
        return chosen


def lookup_of(episode: Episode, top_k: int, form: QueryForm = "query") -> Lookup:
    """What ``episode`` waits for, its queries in the ``form`` that the retriever reads.

    If its environment fails here, the episode has stopped and waits for nothing.
    """
    unwanted: Collection[str] | None = None
    with episode.playing():
        if isinstance(episode.environment, SelectiveEnvironment):
            unwanted = episode.environment.unwanted()
    said = episode.pending.queries if isinstance(episode.pending, Search) else ()
    queries = [written(form, query, episode.question.text, last_thought(episode.text)) for query in said]
    if unwanted is None:
        return Lookup([(query, top_k) for query in queries], None, top_k)
    deeper = -(-len(unwanted) // top_k) * top_k  # whole steps, so that more queries have the same depth
    return Lookup([(query, top_k * (1 + i) + deeper) for i, query in enumerate(queries)], unwanted, top_k)


def look_up(retriever: Retriever, lookups: Sequence[Lookup]) -> Answers:
    """The hits of all of ``lookups``, every passage once: a call for each depth, with every query once."""
    unique = dict.fromkeys(one for lookup in lookups for one in lookup.asked)
    answers: dict[tuple[str, int], Sequence[Hit]] = {}
    for depth in dict.fromkeys(depth for _, depth in unique):
        queries = [query for query, other in unique if other == depth]
        found = map(distinct, retriever.search(queries, depth))
        answers |= dict(zip(((query, depth) for query in queries), found, strict=True))
    return answers
