"""The driver writes searches in the form that the retriever reads, however it is wrapped."""

from __future__ import annotations

import pytest
from test_agent_rollout import ANSWER, GREEDY, SEARCH, Shelf, ask, make

from agent.cluster.retrieval import RetrieverClient
from retrieval.cache import CachedRetriever
from retrieval.combine.hybrid import HybridRetriever
from retrieval.resilient import ResilientRetriever
from sleuth.errors import ConfigError
from sleuth.query_forms import form_of


class Formed(Shelf):
    def __init__(self, query_form: str) -> None:
        super().__init__()
        self.query_form = query_form


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("query", "Paris"),
        ("question_query", "Paris | what is the capital ?"),
        ("thought_query", "Paris | Need it"),
    ],
)
def test_a_search_is_written_in_the_retrievers_form_and_kept_as_the_agent_asked(tiny, form, text):
    shelf = Formed(form)
    wrapped = CachedRetriever(ResilientRetriever(shelf))
    (played,) = make(tiny, {"a": [SEARCH.format("Paris"), ANSWER]}, wrapped).run(ask("a"), GREEDY)
    assert shelf.calls == [[text]]
    assert played.queries == ["Paris"]


def test_an_actor_of_a_cluster_says_the_form_of_its_index():
    assert form_of(RetrieverClient([], "index", 1.0, query_form="thought_query")) == "thought_query"


def test_parts_of_a_hybrid_share_one_form():
    plain = Shelf()
    assert form_of(HybridRetriever([plain, Formed("thought_query")])) == "thought_query"
    assert form_of(HybridRetriever([plain, plain])) == "query"
    with pytest.raises(ConfigError, match="different forms: query, thought_query"):
        form_of(HybridRetriever([Formed("query"), Formed("thought_query")]))
