"""Figures of retrievers for people to read, on standard error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from cli.console import error_console
from sleuth.statistics import explained

if TYPE_CHECKING:
    from workflows.mteb_tasks import TaskScore
    from workflows.retrieval_evaluation import RetrievalReport


def show_set(report: RetrievalReport, what: str, against: Path | None) -> None:
    """One set: a line for each measure, with intervals and, if there is a run to compare with, differences."""
    console = error_console()
    if not report.values:
        console.print(Text(f"{what}: {_queries(report)}, none judged", style="bold"), soft_wrap=True)
        return
    console.print(Text(f"{what}: {_queries(report, 'judged ')}", style="bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("measure")
    table.add_column("mean [95 %]", justify="right", no_wrap=True)
    if against:
        table.add_column(str(against), justify="right")
        table.add_column("difference [95 %]", justify="right", no_wrap=True)
        table.add_column("p", justify="right")
    for name, mean in report.means.items():
        bounds = report.intervals[name]
        cells = [name, f"{mean:.4f} [{bounds.low:.4f}, {bounds.high:.4f}]"]
        if found := report.differences.get(name):
            change = f"{found.difference:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
            cells += [f"{report.other[name]:.4f}", change, f"{found.p_value:.4f}"]
        table.add_row(*map(Text, cells))
    console.print(table)
    _show_levels(report)
    intervals = {name: found.method for name, found in report.intervals.items()}
    differences = {name: found.method for name, found in report.differences.items()}
    for subject, methods in (("95 % intervals", intervals), ("differences", differences)):
        if methods:
            console.print(explained(subject, [methods], "queries"), soft_wrap=True, highlight=False)
    if report.depth is not None:
        console.print(f"{report.depth:,} hits per query", soft_wrap=True)
    if report.answered:
        console.print(f"Answer@k over the {report.answered} queries with known answers", soft_wrap=True)
    _warn_of_nothing(report)


def show_line(report: RetrievalReport) -> None:
    """A set of several, as soon as it is done."""
    first = next(iter(report.means.items()), None)
    figure = f": {first[0]} {first[1]:.4f}" if first else ""
    before = " (done before)" if report.kept else ""
    error_console().print(Text(f"{report.name}{figure}, {_queries(report)}{before}"), soft_wrap=True)
    _warn_of_nothing(report)


def show_sets(reports: Sequence[RetrievalReport], what: str) -> None:
    """Several sets: a line for each, and their means; a mean over some of the sets says over how many."""
    from workflows.retrieval_evaluation import averaged

    means = averaged(reports)
    if not means:
        return
    console = error_console()
    console.print(Text(f"{what}: {len(reports)} sets", style="bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("set")
    table.add_column("queries", justify="right")
    for name in means:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for report in reports:
        cells = [f"{report.means[name]:.4f}" if name in report.means else "" for name in means]
        table.add_row(Text(report.name), str(report.queries), *cells)
    last = [f"{mean:.4f}" + ("" if count == len(reports) else f" of {count}") for mean, count in means.values()]
    table.add_row(Text("mean"), "", *last, style="bold")
    console.print(table)


def show_tasks(scores: Sequence[TaskScore], what: str) -> None:
    """Tasks of mteb: a line for each with its main score, and their mean."""
    console = error_console()
    console.print(Text(f"{what}: {len(scores)} {'task' if len(scores) == 1 else 'tasks'} of mteb", style="bold"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("task", "type", "measure"):
        table.add_column(column)
    table.add_column("score", justify="right")
    for found in scores:
        table.add_row(*map(Text, (found.task, found.kind, found.measure, f"{found.score:.4f}")))
    if len(scores) > 1:
        table.add_row("mean", "", "", f"{sum(found.score for found in scores) / len(scores):.4f}", style="bold")
    console.print(table)


def _show_levels(report: RetrievalReport) -> None:
    """The means over the queries of each level, where queries have one."""
    if not report.slices:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("level")
    table.add_column("queries", justify="right")
    for name in report.means:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for level, means in report.slices.items():
        figures = [f"{means[name]:.4f}" if name in means else "" for name in report.means]
        table.add_row(*map(Text, (level, f"{means['queries']:,.0f}", *figures)))
    error_console().print(table)


def _warn_of_nothing(report: RetrievalReport) -> None:
    if report.judged and not any(report.means.values()):
        error_console().print(
            "[yellow]warning:[/] no judged passage was found at all: do the passage ids match?", soft_wrap=True
        )


def _queries(report: RetrievalReport, what: str = "") -> str:
    return f"{report.queries} {what}{'query' if report.queries == 1 else 'queries'}"
