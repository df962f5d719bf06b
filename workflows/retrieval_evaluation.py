"""Evaluates a retriever, or a TREC run file, against relevance judgements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sleuth.errors import ConfigError, DataError
from workflows.logs import quiet_libraries
from workflows.play import Progress
from workflows.retrievers import open_alone, retriever_settings

if TYPE_CHECKING:
    from retrieval.config import RetrieverSettings
    from retrieval.evaluation.judgements import Qrels
    from retrieval.evaluation.measures import PerQuery
    from retrieval.evaluation.runs import Run
    from sleuth.protocols import Retriever
    from sleuth.statistics import Interval, PairedDifference
    from sleuth.types import Question

Warn = Callable[[str], None]
"""Tells the user what was left out, and why."""


@dataclass(slots=True)
class Task:
    queries: dict[str, Question]
    qrels: Qrels

    @property
    def answers(self) -> dict[str, tuple[str, ...]]:
        return {query: q.answers for query in self.qrels if (q := self.queries.get(query)) and q.answers}


@dataclass(slots=True)
class Found:
    """A run; ``known`` if the texts of its hits were available to be judged."""

    run: Run
    answers: Qrels = field(default_factory=dict)
    known: bool = True


@dataclass(slots=True)
class RetrievalReport:
    values: PerQuery
    means: dict[str, float]
    intervals: dict[str, Interval]
    queries: int
    answered: int
    other: dict[str, float] = field(default_factory=dict)
    differences: Mapping[str, PairedDifference] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        from retrieval.evaluation.measures import as_plain

        content: dict[str, object] = {**self.means, "queries": self.queries}
        if self.answered:
            content["answer_queries"] = self.answered
        content["intervals"] = {name: [found.low, found.high] for name, found in self.intervals.items()}
        content["interval_methods"] = {name: found.method for name, found in self.intervals.items()}
        if self.differences:
            content["against"] = as_plain(self.differences, self.other)
        return content


def read_task(queries: Path | None, qrels: Path | None, beir: Path | None, split: str, warn: Warn) -> Task:
    """Queries and their relevance judgements. Raises ConfigError or DataError if nothing can be judged."""
    from retrieval.evaluation.judgements import read_qrels, read_queries

    if beir is not None:
        queries, qrels = queries or beir / "queries.jsonl", qrels or beir / "qrels" / f"{split}.tsv"
    asked = {query.id: query for query in read_queries(queries)} if queries else {}
    if qrels is not None:
        judged = read_qrels(qrels)
    else:  # answers alone also judge every passage that is found
        judged = {query.id: {} for query in asked.values() if query.answers}
        if not judged:
            raise ConfigError("there are no judgements", "add --qrels FILE, or --queries FILE with golden_answers")
    missing = [query for query in judged if query not in asked]
    if queries and len(missing) == len(judged):
        raise DataError(f"{queries} has none of the {len(judged)} judged queries", "do the ids match?")
    if queries and missing:
        warn(f"{len(missing)} of {len(judged)} judged queries are not in {queries}: they count as 0")
    return Task(asked, judged)


def search_index(
    index: str,
    overrides: Sequence[str],
    task: Task,
    k: int,
    names: Sequence[str],
    *,
    refuse: bool,
    warn: Warn,
    counting: Progress,
) -> tuple[Found, list[str]]:
    """The run of ``index``, and the measures that its depth allows; ``refuse`` makes deeper ones an error."""
    from retrieval.evaluation.evaluate import retrieve

    if not task.queries:
        raise ConfigError("no queries are given", "add --queries FILE, or --beir FOLDER")
    quiet_libraries()
    settings = retriever_settings(index, overrides)
    retriever = open_alone(settings, cached=False)
    kept = _reached(names, settings, retriever, k, refuse, warn)
    asked = [task.queries[query] for query in task.qrels if query in task.queries]
    with counting("queries") as on_progress:
        found = retrieve(retriever, asked, k, on_progress=on_progress)
    return Found(found.run, found.answers), kept


def _reached(
    names: Sequence[str], settings: RetrieverSettings, retriever: Retriever, k: int, refuse: bool, warn: Warn
) -> list[str]:
    """Those of ``names`` whose cutoff does not exceed the number of hits per query."""
    from retrieval.evaluation.measures import cutoff_of
    from retrieval.size import size_of

    depth = settings.most_hits
    reach, size = min(k, depth or k), size_of(retriever)
    if size is not None and reach >= size:
        return list(names)
    too_deep = [name for name in names if (cutoff_of(name) or 0) > reach]
    by_depth = reach < k
    if too_deep and refuse:
        what, hint = ("the retriever's depth", "raise its depth") if by_depth else ("-k", "raise -k")
        raise ConfigError(f"{too_deep[0]} needs more hits per query than {what} allows ({reach})", hint)
    if too_deep and by_depth:
        warn(f"the retriever's depth is {reach}: {', '.join(too_deep)} cannot be computed")
    return [name for name in names if name not in too_deep]


def choose_measures(given: str | None, task: Task) -> list[str]:
    """The requested measures, or the default ones. Raises ConfigError for an unknown one or one without judgements."""
    from retrieval.evaluation.measures import ANSWER_MEASURES, MEASURES, check_measure, is_answer_measure

    judged = any(task.qrels.values())
    usual = [*(MEASURES if judged else ()), *(ANSWER_MEASURES if task.answers else ())]
    names = given.replace(",", " ").split() if given else usual
    for name in names:
        check_measure(name)
    if not judged and not all(map(is_answer_measure, names)):
        raise ConfigError("there are answers but no judgements: only Answer@k can be computed", "add --qrels FILE")
    if any(map(is_answer_measure, names)) and not task.answers:
        raise ConfigError("Answer@k needs the queries' answers", "add --queries FILE with golden_answers")
    return names


def compare(
    task: Task, names: Sequence[str], first: Found, against: Found | None, passages: str | Path | None, warn: Warn
) -> RetrievalReport:
    from retrieval.evaluation.measures import differences, intervals, means

    values = _values(task, names, first, passages, warn)
    report = RetrievalReport(values, means(values), intervals(values), len(task.qrels), 0)
    report.answered = max((len(v) for name, v in values.items() if name.startswith("Answer@")), default=0)
    if against is not None:
        other = _values(task, names, against, passages, warn)
        report.other, report.differences = means(other), differences(other, values)
    return report


def _values(task: Task, names: Sequence[str], found: Found, passages: str | Path | None, warn: Warn) -> PerQuery:
    """Every measure that can be computed; Answer@k needs texts, which a run file lacks."""
    from retrieval.evaluation.evaluate import judge_run
    from retrieval.evaluation.measures import is_answer_measure, per_query

    if not found.known and passages is not None:
        found.answers, found.known = judge_run(found.run, task.answers, passages), True
    kept = [name for name in names if found.known or not is_answer_measure(name)]
    if len(kept) < len(names):
        warn("Answer@k for a run file needs the passages: add --passages CORPUS")
    answers = {query: found.answers.get(query, {}) for query in task.answers}
    return per_query(task.qrels, found.run, kept, answers)
