"""Prints evaluation metrics as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sleuth.failures import causes
from sleuth.statistics import explained, methods_of

if TYPE_CHECKING:
    from agent.evaluate import EvaluationReport, SearchFigures


def print_report(report: EvaluationReport, title: str, console: Console) -> None:
    """Print the report as a table by pack and kind of question, then one line for each of the other figures."""
    figures = report.to_dict()
    names = list(report.overall.means)
    console.print(Text(title, style="bold"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("questions")
    table.add_column("n", justify="right")
    for name in names:
        table.add_column(f"{name.upper()} [95 %]", justify="right")
    for name in ("gold found", "searches"):
        table.add_column(name, justify="right")
    rows = list(_groups(figures))
    for name, row in rows:
        values = (_with_interval(row, metric) for metric in names)
        table.add_row(Text(name), str(row["scored"]), *values, _gold(row), _number(row["searches"]))
    wide = Console(file=console.file, width=max(console.width, 120)) if not console.is_terminal else console
    wide.print(table)
    if methods := explained("95 % intervals", (methods_of(row) for _, row in rows)):
        console.print(methods, highlight=False, soft_wrap=True)
    for label, value in _other_lines(report):
        console.print(f"{label:<22}{value}", markup=False, soft_wrap=True)
    if report.unscored:
        console.print(
            f"[yellow]warning:[/] {report.unscored} of {report.overall.n} questions could not be scored "
            f"({escape(causes(report.failures))}); no mean includes them. The same command with --resume retries them.",
            soft_wrap=True,
        )


def _groups(figures: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """All questions, then each pack with its kinds, or each kind where no packs are known."""
    yield "all", figures
    for pack, row in figures["by_pack"].items():
        yield pack, row
        yield from ((f"  {kind}", of) for kind, of in row.get("by_kind", {}).items())
    if not figures["by_pack"]:
        yield from figures["by_kind"].items()


def _gold(row: Mapping[str, Any]) -> str:
    """The share of gold passages found; of questions with alternatives, the share for which any was."""
    gold, alternatives = row["gold"]["recall"], row["alternatives"]["recall"]
    shown = [] if gold is None and alternatives is not None else [_percent(gold)]
    return ", ".join([*shown, *([] if alternatives is None else [f"any {_percent(alternatives)}"])])


def _other_lines(report: EvaluationReport) -> list[tuple[str, str]]:
    gold, alternatives, titles = report.gold, report.alternatives, report.supporting_titles
    by_id, by_title = _share(gold), _share(titles)
    if not report.searches and not titles.recall and not gold.recall:
        by_id = by_title = "no search was made"
    found = [("supporting titles", f"{by_title} (of the {titles.questions} questions that list them)")]
    if gold.by_id:
        known = f"{gold.by_id} list ids, the others titles" if gold.by_id < gold.questions else "by id"
        found.insert(0, ("gold passages", f"{by_id} (of the {gold.questions} questions that list them, {known})"))
    if alternatives.questions:
        any_found = f"{_percent(alternatives.recall)} (of the {alternatives.questions} questions with alternatives)"
        found.append(("any gold passage", any_found))
    stops = ", ".join(f"{reason} {count}" for reason, count in report.stops.items())
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in report.seconds.items())
    called = f"{_number(report.calls)}, {_percent(report.failed_calls)} of them failed"
    return [
        ("searches per question", _number(report.searches)),
        *([("calls per question", called)] if report.calls else []),
        ("answered", _percent(report.answered)),
        ("invalid turns", _percent(report.invalid_turns)),
        *found,
        ("tokens per question", f"{_number(report.tokens)}, {_number(report.policy_tokens)} of them sampled"),
        ("reward", _number(report.reward)),
        ("ended by", stops),
        ("seconds", seconds),
    ]


def _share(found: SearchFigures) -> str:
    return f"{_percent(found.recall)} found, all of them for {_percent(found.all_found)}"


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
