"""Evaluates a retriever, or a TREC run file, on one set of queries and judgements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sleuth.errors import ConfigError
from workflows.play import Progress

if TYPE_CHECKING:
    from retrieval.evaluation.judgements import Qrels
    from retrieval.evaluation.measures import PerQuery
    from retrieval.evaluation.runs import Run
    from retrieval.evaluation.sets import RetrievalSet
    from sleuth.protocols import Retriever
    from sleuth.statistics import Interval, PairedDifference

Warn = Callable[[str], None]
"""Tells the user what was left out, and why."""


@dataclass(slots=True)
class Found:
    """A run; ``known`` if the texts of its hits were available to be judged."""

    run: Run
    answers: Qrels = field(default_factory=dict)
    known: bool = True


@dataclass
class RetrievalReport:
    """The figures of one set.

    ``others`` are those of the run compared with, ``mteb`` what mteb reports besides; ``depth`` is hits per query, None
    of a finished run. ``kept``: worked out before. ``judged``: by passages, not by answers alone.
    """

    name: str
    queries: int
    values: PerQuery
    others: PerQuery = field(default_factory=dict)
    depth: int | None = None
    mteb: PerQuery = field(default_factory=dict)
    kept: bool = False
    judged: bool = True
    levels: Mapping[str, str] = field(default_factory=dict)
    """Of the queries that have one."""

    @cached_property
    def slices(self) -> dict[str, dict[str, float]]:
        """The means over the queries of each level, and how many those are."""
        slices: dict[str, dict[str, float]] = {}
        for name in dict.fromkeys(self.levels.values()):
            mine = {query for query, level in self.levels.items() if level == name}
            found = {m: [v for q, v in values.items() if q in mine] for m, values in self.values.items()}
            means = {measure: sum(values) / len(values) for measure, values in found.items() if values}
            slices[name] = {"queries": len(mine), **means}
        return slices

    @cached_property
    def means(self) -> dict[str, float]:
        from retrieval.evaluation.measures import means

        return means(self.values)

    @cached_property
    def intervals(self) -> dict[str, Interval]:
        from retrieval.evaluation.measures import intervals

        return intervals(self.values)

    @cached_property
    def other(self) -> dict[str, float]:
        from retrieval.evaluation.measures import means

        return means(self.others)

    @cached_property
    def differences(self) -> Mapping[str, PairedDifference]:
        from retrieval.evaluation.measures import differences

        return differences(self.others, self.values)

    @cached_property
    def answered(self) -> int:
        """Queries with known answers."""
        return max((len(found) for name, found in self.values.items() if name.startswith("Answer@")), default=0)

    def to_dict(self) -> dict[str, object]:
        from retrieval.evaluation.measures import as_plain

        content: dict[str, object] = {**self.means, "queries": self.queries}
        if self.slices:
            content["levels"] = self.slices
        if self.answered:
            content["answer_queries"] = self.answered
        if self.depth is not None:
            content["depth"] = self.depth
        intervals = self.intervals
        content["intervals"] = {name: [found.low, found.high] for name, found in intervals.items()}
        content["interval_methods"] = {name: found.method for name, found in intervals.items()}
        if self.others:
            content["against"] = as_plain(self.differences, self.other)
        return content


def choose_measures(given: str | None, chosen: RetrievalSet, *, needed: bool) -> list[str]:
    """The requested measures, or the default ones; none where nothing is judged and none is ``needed``.

    Raises ConfigError for an unknown one or one without judgements.
    """
    from retrieval.evaluation.measures import ANSWER_MEASURES, MEASURES, check_measure, is_answer_measure

    usual = [*(MEASURES if chosen.judged else ()), *(ANSWER_MEASURES if chosen.answers else ())]
    names = given.replace(",", " ").split() if given else usual
    for name in names:
        check_measure(name)
    if not usual and (names or needed):
        raise ConfigError(
            "there are no judgements",
            "add --qrels FILE, or --queries FILE with golden_answers; or --run-out FILE alone to write the run",
        )
    if not chosen.judged and not all(map(is_answer_measure, names)):
        raise ConfigError("there are answers but no judgements: only Answer@k can be computed", "add --qrels FILE")
    if any(map(is_answer_measure, names)) and not chosen.answers:
        raise ConfigError("Answer@k needs the queries' answers", "add --queries FILE with golden_answers")
    return names


def search_set(
    retriever: Retriever,
    most_hits: int | None,
    chosen: RetrievalSet,
    k: int | None,
    names: Sequence[str],
    more: Sequence[str] = (),
    *,
    refuse: bool,
    warn: Warn,
    counting: Progress,
) -> tuple[Found, list[str], int]:
    """The run of ``retriever``, the measures that can be read from it, and its hits per query.

    ``k`` None: as many as the measures need, ``more`` included. ``most_hits``: see `RetrieverSettings`. ``refuse``
    makes a measure that reads further an error.
    """
    from retrieval.evaluation.evaluate import retrieve
    from retrieval.evaluation.measures import depth_of, is_answer_measure
    from retrieval.size import limit_of

    if not chosen.queries:
        raise ConfigError("no queries are given", "add --queries FILE, --topics FILE or --beir FOLDER")
    depth = k or depth_of([*names, *more])
    most_hits = most_hits or limit_of(retriever)
    kept = _reached(names, retriever, depth, most_hits, refuse, warn)
    with counting(f"{chosen.name} queries".strip()) as on_progress:
        found = retrieve(
            retriever,
            chosen.asked,
            depth,
            left_out=chosen.left_out,
            judged=depth_of([name for name in kept if is_answer_measure(name)], least=0),
            whole=_of_whole_passages(chosen),
            on_progress=on_progress,
        )
    return Found(found.run, found.answers), kept, min(depth, most_hits or depth)


def _of_whole_passages(chosen: RetrievalSet) -> bool:
    """Whether passages are judged, so that the windows that an index has of them count as they do."""
    from sleuth.evidence import parent_id

    return bool(chosen.qrels) and all(parent_id(name) == name for judged in chosen.qrels.values() for name in judged)


def _reached(
    names: Sequence[str], retriever: Retriever, k: int, most_hits: int | None, refuse: bool, warn: Warn
) -> list[str]:
    """Those of ``names`` whose cutoff does not exceed the number of hits per query."""
    from retrieval.evaluation.measures import WHOLE_RUN, cutoff_of
    from retrieval.size import size_of

    reach, size = min(k, most_hits or k), size_of(retriever)
    if size is not None and reach >= size:
        return list(names)
    by_depth = reach < k
    too_deep = [name for name in names if (cutoff_of(name) or 0) > reach]
    if too_deep and refuse:
        what, hint = ("the retriever's depth", "raise its depth") if by_depth else ("-k", "raise -k")
        raise ConfigError(f"{too_deep[0]} needs more hits per query than {what} allows ({reach})", hint)
    limit = f"the retriever's depth is {reach}" if by_depth else f"-k is {reach}"
    if too_deep:
        warn(f"{limit}: {', '.join(too_deep)} cannot be computed")
    whole = [name for name in names if cutoff_of(name) is None]
    if whole and reach < WHOLE_RUN:
        warn(f"{limit}: {', '.join(whole)} is cut there; published figures read {WHOLE_RUN:,} hits")
    return [name for name in names if name not in too_deep]


def judge(
    chosen: RetrievalSet, names: Sequence[str], found: Found, passages: str | Path | None, warn: Warn
) -> PerQuery:
    """Every measure that can be computed; Answer@k needs texts, which a run file lacks."""
    from retrieval.evaluation.evaluate import judge_run
    from retrieval.evaluation.measures import is_answer_measure, per_query
    from retrieval.evaluation.sets import without_left_out

    run = without_left_out(found.run, chosen)
    if not found.known and passages is not None:
        found.answers, found.known = judge_run(run, chosen.answers, passages), True
    kept = [name for name in names if found.known or not is_answer_measure(name)]
    if len(kept) < len(names):
        warn("Answer@k for a run file needs the passages: add --passages CORPUS")
    answers = {query: found.answers.get(query, {}) for query in chosen.answers}
    return per_query(chosen.qrels, run, kept, answers)


def averaged(reports: Sequence[RetrievalReport]) -> dict[str, tuple[float, int]]:
    """The mean over sets of each measure, every set counting alike, and how many sets have it."""
    names = dict.fromkeys(name for report in reports for name in report.means)
    found = {name: [report.means[name] for report in reports if name in report.means] for name in names}
    return {name: (sum(values) / len(values), len(values)) for name, values in found.items()}


def as_json(reports: Sequence[RetrievalReport]) -> Mapping[str, Any]:
    """One set as its own figures; several by name, with their means."""
    if len(reports) == 1:
        return reports[0].to_dict()
    means = averaged(reports)
    return {
        "sets": {report.name: report.to_dict() for report in reports},
        "mean": {name: mean for name, (mean, _) in means.items()},
        "mean_over": {name: count for name, (_, count) in means.items()},
    }
