"""The sets that a retriever is measured on: BEIR, BRIGHT, or files of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sleuth.errors import ConfigError, DataError
from workflows.retrieval_evaluation import Warn

if TYPE_CHECKING:
    from retrieval.evaluation.judgements import Qrels
    from retrieval.evaluation.sets import RetrievalSet
    from sleuth.types import Question


@dataclass(frozen=True, slots=True)
class Sources:
    """Where queries and judgements are. ``keep_itself``: in BEIR's sets, too, a query may find itself."""

    queries: Path | None = None
    qrels: Path | None = None
    topics: Path | None = None
    topic_field: str = "title"
    beir: Sequence[str] = ()
    bright: Sequence[str] = ()
    long: bool = False
    split: str | None = None
    keep_itself: bool = False


def read_sets(sources: Sources, warn: Warn) -> list[RetrievalSet]:
    """The sets that ``sources`` name. Raises ConfigError or DataError if there is nothing to search for."""
    from retrieval.evaluation.benchmarks import beir_set, bright_sets
    from retrieval.evaluation.judgements import read_qrels, read_queries
    from retrieval.evaluation.topics import read_topics

    sets = [beir_set(given, sources.split) for given in sources.beir]
    sets += [chosen for given in sources.bright for chosen in bright_sets(given, sources.long)]
    if sources.keep_itself:
        sets = [replace(chosen, not_itself=False) for chosen in sets]
    if len(sets) > 1 and (sources.queries or sources.topics or sources.qrels):
        raise ConfigError("--queries, --topics and --qrels go with one set", "leave them out: the sets bring their own")
    names = [chosen.name for chosen in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"two sets are called '{twice}'", "name each once, or rename a folder")
    if sources.queries and sources.topics:
        raise ConfigError("give either --queries or --topics")
    asked = None
    if sources.topics:
        asked = read_topics(sources.topics, sources.topic_field)
    elif sources.queries:
        asked = read_queries(sources.queries)
    judged = read_qrels(sources.qrels) if sources.qrels else None
    if not sets or asked or judged:
        sets = [_own(sets[0] if sets else None, sources, asked, judged)]
    for chosen in sets:
        _check_queries(chosen, sources.queries or sources.topics or chosen.name, warn)
    return sets


def _own(
    chosen: RetrievalSet | None, sources: Sources, asked: Sequence[Question] | None, judged: Qrels | None
) -> RetrievalSet:
    """The user's queries and judgements, in place of those of a set if one is named."""
    from retrieval.evaluation.sets import RetrievalSet
    from sleuth.files import stem_of

    named = sources.queries or sources.topics or sources.qrels
    chosen = chosen or RetrievalSet(stem_of(named) if named else "", {}, {})
    if asked is not None:
        chosen = replace(chosen, queries={query.id: query for query in asked})
    if judged is not None:
        chosen = replace(chosen, qrels=judged)
    if not chosen.qrels:  # answers alone also judge every passage that is found
        chosen = replace(chosen, qrels={query.id: {} for query in chosen.queries.values() if query.answers})
    return chosen


def _check_queries(chosen: RetrievalSet, where: object, warn: Warn) -> None:
    """Say which judged queries are unknown; raises DataError if all are."""
    missing = [query for query in chosen.qrels if query not in chosen.queries]
    if not chosen.queries or not missing:
        return
    if len(missing) == len(chosen.qrels):
        raise DataError(f"{where} has none of the {len(missing)} judged queries", "do the ids match?")
    warn(f"{len(missing)} of {len(chosen.qrels)} judged queries are not in {where}: they count as 0")
