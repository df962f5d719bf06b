"""Prints evaluation metrics as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sleuth.statistics import explained, methods_of

if TYPE_CHECKING:
    from agent.evaluate import EvaluationReport


def print_report(report: EvaluationReport, title: str, console: Console) -> None:
    """Print the report as a table by kind of question, then one line for each of the other figures."""
    figures = report.to_dict()
    names = list(report.overall.means)
    console.print(Text(title, style="bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("questions")
    table.add_column("n", justify="right")
    for name in names:
        table.add_column(f"{name.upper()} [95 %]", justify="right")
    rows: dict[str, Mapping[str, Any]] = {"all": figures, **figures["by_kind"]}
    for kind, row in rows.items():
        table.add_row(Text(kind), str(row["scored"]), *(_with_interval(row, name) for name in names))
    console.print(table)
    if methods := explained("95 % intervals", map(methods_of, rows.values())):
        console.print(methods, highlight=False, soft_wrap=True)
    for label, value in _other_lines(report):
        console.print(f"{label:<22}{value}", markup=False, soft_wrap=True)
    if report.unscored:
        console.print(
            f"[yellow]warning:[/] {report.unscored} of {report.overall.n} questions could not be scored because the "
            "retriever failed; no mean includes them. The same command with --resume retries them.",
            soft_wrap=True,
        )


def _other_lines(report: EvaluationReport) -> list[tuple[str, str]]:
    titles = report.supporting_titles
    found = f"{_percent(titles.recall)} found, all of them for {_percent(titles.all_found)}"
    if not report.searches and not titles.recall:
        found = "no search was made"
    stops = ", ".join(f"{reason} {count}" for reason, count in report.stops.items())
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items())
    called = f"{_number(report.calls)}, {_percent(report.failed_calls)} of them failed"
    return [
        ("searches per question", _number(report.searches)),
        *([("calls per question", called)] if report.calls else []),
        ("answered", _percent(report.answered)),
        ("invalid turns", _percent(report.invalid_turns)),
        ("supporting titles", f"{found} (of the {titles.questions} questions that list them)"),
        ("tokens per question", f"{_number(report.tokens)}, {_number(report.policy_tokens)} of them sampled"),
        ("reward", _number(report.reward)),
        ("ended by", stops),
        ("seconds", seconds),
    ]


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
