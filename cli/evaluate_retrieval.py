"""``sleuth evaluate-retrieval``: how good a retriever, or a run that somebody made, finds what is judged relevant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import counting, people, print_json
from sleuth.errors import ConfigError, DataError
from workflows.retrievers import HELP

if TYPE_CHECKING:
    from retrieval.config import RetrieverSettings
    from retrieval.evaluation.judgements import Qrels
    from retrieval.evaluation.measures import PerQuery
    from retrieval.evaluation.runs import Run
    from sleuth.protocols import Retriever
    from sleuth.statistics import PairedDifference
    from sleuth.types import Question

DEPTH = 100


def evaluate_retrieval(
    index: Annotated[str | None, typer.Argument(help=f"{HELP} Or give --run.", show_default=False)] = None,
    queries: Annotated[Path | None, typer.Option(help="Queries: BEIR or FlashRAG jsonl, or id<tab>text.")] = None,
    qrels: Annotated[Path | None, typer.Option(help="Judgements: BEIR's tsv or TREC's.")] = None,
    beir: Annotated[Path | None, typer.Option(help="A BEIR folder: its queries.jsonl and qrels/SPLIT.tsv.")] = None,
    split: Annotated[str, typer.Option(help="Which judgements of the BEIR folder.")] = "test",
    k: Annotated[int | None, typer.Option("-k", "--k", min=1, help=f"Hits a query; {DEPTH} by default.")] = None,
    run: Annotated[Path | None, typer.Option(help="Evaluate this TREC run instead of an index.")] = None,
    run_out: Annotated[Path | None, typer.Option(help="Write the run here, in TREC's layout.")] = None,
    against: Annotated[Path | None, typer.Option(help="A TREC run to compare with, query by query.")] = None,
    passages: Annotated[Path | None, typer.Option(help="Corpus that run files came from, for Answer@k.")] = None,
    measures: Annotated[str | None, typer.Option(help="For example 'nDCG@10 R@20 Success@5'.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A retriever setting: retriever.k1=1.2")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Rank passages for judged queries and report trec_eval's measures with intervals.

    Where the answers of queries are known (FlashRAG's golden_answers), also DPR's top-k accuracy, Answer@k.
    """
    if (index is None) == (run is None):
        raise ConfigError("give either an index or --run FILE")
    if run and (k or run_out or overrides):
        raise ConfigError("-k, --run-out and --set are for an index; a run file is taken as it is")
    from retrieval.evaluation.runs import read_run, write_run

    task = _read_task(queries, qrels, beir, split)
    names = _choose(measures, task)
    other = _Found(read_run(against), known=False) if against else None
    if run:
        first = _Found(read_run(run), known=False)
    else:
        first, names = _search(str(index), overrides or [], task, k or DEPTH, names, refuse=measures is not None)
    report = _compare(task, names, first, other, passages)
    _print(report, task, str(run or index), against)
    if json:
        print_json(report.to_dict())
    if run_out:  # last: figures that took an hour do not get lost over a file that cannot be written
        write_run(run_out, first.run)


@dataclass(slots=True)
class _Task:
    queries: dict[str, Question]
    qrels: Qrels

    @property
    def answers(self) -> dict[str, tuple[str, ...]]:
        return {query: q.answers for query in self.qrels if (q := self.queries.get(query)) and q.answers}


@dataclass(slots=True)
class _Found:
    """A run; ``known`` when its texts were seen and judged."""

    run: Run
    answers: Qrels = field(default_factory=dict)
    known: bool = True


@dataclass(slots=True)
class _Report:
    values: PerQuery
    means: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    queries: int
    answered: int
    other: dict[str, float] = field(default_factory=dict)
    differences: Mapping[str, PairedDifference] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        from retrieval.evaluation.measures import as_plain

        content: dict[str, object] = {**self.means, "queries": self.queries}
        if self.answered:
            content["answer_queries"] = self.answered
        content["intervals"] = {name: list(bounds) for name, bounds in self.intervals.items()}
        if self.differences:
            content["against"] = as_plain(self.differences, self.other)
        return content


def _read_task(queries: Path | None, qrels: Path | None, beir: Path | None, split: str) -> _Task:
    from retrieval.evaluation.judgements import read_qrels, read_queries

    if beir is not None:
        queries, qrels = queries or beir / "queries.jsonl", qrels or beir / "qrels" / f"{split}.tsv"
    asked = {query.id: query for query in read_queries(queries)} if queries else {}
    if qrels is not None:
        judged = read_qrels(qrels)
    else:  # answers alone are judgements too: of every passage that is found
        judged = {query.id: {} for query in asked.values() if query.answers}
        if not judged:
            raise ConfigError("nothing says what is relevant", "--qrels FILE, or --queries FILE with golden_answers")
    missing = [query for query in judged if query not in asked]
    if queries and len(missing) == len(judged):
        raise DataError(f"{queries} holds none of the {len(judged)} judged queries", "are their ids the same?")
    if queries and missing:
        people().print(
            f"[yellow]warning:[/] {len(missing)} of {len(judged)} judged queries are not in {queries}: they count as 0",
            soft_wrap=True,
        )
    return _Task(asked, judged)


def _search(
    index: str, overrides: Sequence[str], task: _Task, k: int, names: Sequence[str], *, refuse: bool
) -> tuple[_Found, list[str]]:
    """What ``index`` finds, and those of the measures that it is deep enough for; others it may ``refuse``."""
    from retrieval.evaluation.evaluate import retrieve
    from retrieval.open import open_retriever
    from workflows.logs import quiet_libraries
    from workflows.retrievers import retriever_settings

    if not task.queries:
        raise ConfigError("no queries are named", "--queries FILE, or --beir FOLDER")
    quiet_libraries()
    settings = retriever_settings(index, overrides)
    retriever = open_retriever(settings, cached=False)
    kept = _reached(names, settings, retriever, k, refuse)
    asked = [task.queries[query] for query in task.qrels if query in task.queries]
    with counting("queries") as on_progress:
        found = retrieve(retriever, asked, k, on_progress=on_progress)
    return _Found(found.run, found.answers), kept


def _reached(
    names: Sequence[str], settings: RetrieverSettings, retriever: Retriever, k: int, refuse: bool
) -> list[str]:
    """Those of ``names`` that read no further than the hits of a query reach."""
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
        raise ConfigError(f"{too_deep[0]} reads further than the {reach} hits of {what}", hint)
    if too_deep and by_depth:
        people().print(
            f"[yellow]warning:[/] the retriever's depth is {reach}: {', '.join(too_deep)} cannot be worked out",
            soft_wrap=True,
        )
    return [name for name in names if name not in too_deep]


def _choose(given: str | None, task: _Task) -> list[str]:
    """The measures asked for, or the usual ones. Raises ConfigError for one that is none or lacks judgements."""
    from retrieval.evaluation.measures import ANSWER_MEASURES, MEASURES, check_measure, is_answer_measure

    judged = any(task.qrels.values())
    usual = [*(MEASURES if judged else ()), *(ANSWER_MEASURES if task.answers else ())]
    names = given.replace(",", " ").split() if given else usual
    for name in names:
        check_measure(name)
    if not judged and not all(map(is_answer_measure, names)):
        raise ConfigError("there are answers but no judgements: only Answer@k can be worked out", "--qrels FILE")
    if any(map(is_answer_measure, names)) and not task.answers:
        raise ConfigError("Answer@k needs the answers of queries", "--queries FILE with golden_answers")
    return names


def _compare(
    task: _Task, names: Sequence[str], first: _Found, against: _Found | None, passages: Path | None
) -> _Report:
    from retrieval.evaluation.measures import differences, intervals, means

    values = _values(task, names, first, passages)
    report = _Report(values, means(values), intervals(values), len(task.qrels), 0)
    report.answered = max((len(v) for name, v in values.items() if name.startswith("Answer@")), default=0)
    if against is not None:
        other = _values(task, names, against, passages)
        report.other, report.differences = means(other), differences(other, values)
    return report


def _values(task: _Task, names: Sequence[str], found: _Found, passages: Path | None) -> PerQuery:
    """Every measure that can be worked out: Answer@k needs texts, which a run file has not."""
    from retrieval.evaluation.evaluate import judge_run
    from retrieval.evaluation.measures import is_answer_measure, per_query

    if not found.known and passages is not None:
        found.answers, found.known = judge_run(found.run, task.answers, passages), True
    kept = [name for name in names if found.known or not is_answer_measure(name)]
    if len(kept) < len(names):
        people().print("[yellow]warning:[/] Answer@k of a run file needs its texts: --passages CORPUS", soft_wrap=True)
    answers = {query: found.answers.get(query, {}) for query in task.answers}
    return per_query(task.qrels, found.run, kept, answers)


def _print(report: _Report, task: _Task, what: str, against: Path | None) -> None:
    from rich.table import Table
    from rich.text import Text

    console = people()
    console.print(Text(f"{what}: {report.queries} judged queries", style="bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("measure")
    table.add_column("mean [95 %]", justify="right", no_wrap=True)
    if against:
        table.add_column(str(against), justify="right")
        table.add_column("difference [95 %]", justify="right", no_wrap=True)
        table.add_column("p", justify="right")
    for name, mean in report.means.items():
        low, high = report.intervals[name]
        cells = [name, f"{mean:.4f} [{low:.4f}, {high:.4f}]"]
        if found := report.differences.get(name):
            change = f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
            cells += [f"{report.other[name]:.4f}", change, f"{found.p_value:.4f}"]
        table.add_row(*map(Text, cells))
    console.print(table)
    if report.answered:
        console.print(f"Answer@k over the {report.answered} queries whose answers are known", soft_wrap=True)
    if any(task.qrels.values()) and not any(report.means.values()):
        console.print(
            "[yellow]warning:[/] no judged passage was found at all: do the ids of passages agree?", soft_wrap=True
        )
