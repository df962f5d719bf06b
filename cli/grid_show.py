"""Shows a grid of evaluations as one table and one bar chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sleuth.statistics import explained, methods_of

CellFigures = Mapping[str, Any]


def print_table(rows: Sequence[CellFigures], comparisons: Sequence[CellFigures], console: Console) -> None:
    """One line per cell; the last column compares its EM with the first cell of the same data set."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    extra = [name for name in rows[0] if name.startswith(("pass@", "majority@")) and not name.endswith("_interval")]
    judged = any("judge" in row for row in rows)
    for name in ("data", "policy", "mode", "retriever"):
        table.add_column(name, overflow="fold")
    columns = ["n", "EM [95 %]", "F1 [95 %]", *extra, *(["judge"] if judged else [])]
    columns += ["gold found", "searches", "tokens", "seconds", "EM against the first"]
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        place = [Text(str(row[name])) for name in ("data", "policy", "mode", "retriever")]
        values = [
            str(row["scored"]),
            _interval(row, "em"),
            _interval(row, "f1"),
            *(_number(row[name]) for name in extra),
        ]
        if judged:
            values.append(_number((row.get("judge") or {}).get("right")))
        values += [
            _gold(row),
            _number(row["searches"]),
            _number(row["tokens"]),
            f"{sum(row['seconds'].values()):.1f}",
        ]
        table.add_row(*place, *values, _against(row, rows, comparisons))
    wide = Console(file=console.file, width=max(console.width, 180)) if not console.is_terminal else console
    wide.print(table)
    for what, methods in (
        ("95 % intervals", map(methods_of, rows)),
        ("EM against the first", ({"em": found["method"]} for found in comparisons)),
    ):
        if said := explained(what, methods):
            console.print(said, highlight=False, soft_wrap=True)
    unscored = sum(row["unscored"] for row in rows)
    if unscored:
        console.print(f"[yellow]warning:[/] {unscored} questions could not be scored; --resume retries them.")
    for name in ("pack", "kind"):
        groups = sorted({group for row in rows for group in row[f"by_{name}"]})
        if groups:
            wide.print(_by_group(rows, name, groups))


def chart(rows: Sequence[CellFigures], path: Path) -> None:
    """Bars of EM with 95 % intervals: a group for each data set and policy, a bar for each mode and retriever."""
    from sleuth.bars import Bar, draw_bars

    several = len({row["policy"] for row in rows}) > 1
    bars = []
    for row in rows:
        if row["em"] is None:
            continue
        group = f"{row['data']}\n{row['policy']}" if several else str(row["data"])
        label = row["mode"] if row["retriever"] == "-" else f"{row['mode']}, {row['retriever']}"
        low, high = row["em_interval"]
        bars.append(Bar(group, label, row["em"], low, high))
    if bars:
        draw_bars(bars, path, y_label="exact match, 95 % intervals")


def _by_group(rows: Sequence[CellFigures], name: str, groups: Sequence[str]) -> Table:
    """EM by pack or by kind of question."""
    table = Table(
        box=None, pad_edge=False, header_style="bold", title=f"EM by {name} of question", title_justify="left"
    )
    table.add_column("cell", overflow="fold")
    for group in groups:
        table.add_column(Text(group), justify="right")
    for row in rows:
        found = (row[f"by_{name}"].get(group) for group in groups)
        table.add_row(Text(str(row["folder"])), *(_of_group(figures) for figures in found))
    return table


def _against(row: CellFigures, rows: Sequence[CellFigures], comparisons: Sequence[CellFigures]) -> str:
    first = next(other for other in rows if other["data"] == row["data"])
    if first is row:
        return "-"
    found = next((c for c in comparisons if (c["a"], c["b"]) == (first["folder"], row["folder"])), None)
    if found is None:
        return "-"
    return f"{found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}] p={found['p_value']:.3f}"


def _gold(row: CellFigures) -> str:
    """The share of gold passages found and of how many questions; apart, those of which any gold passage will do."""
    parts = [("", row["gold"]), ("any ", row["alternatives"])]
    found = [f"{any_}{part['recall']:.3f} ({part['questions']})" for any_, part in parts if part["recall"] is not None]
    return "-" if not found or row["mode"] in ("direct", "cot") else ", ".join(found)


def _interval(row: CellFigures, name: str) -> str:
    if row[name] is None:
        return "-"
    low, high = row[f"{name}_interval"]
    return f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"


def _of_group(figures: Mapping[str, Any] | None) -> str:
    """EM over the questions of a group that could be scored, and their number."""
    if figures is None or figures["em"] is None:
        return "-"
    return f"{figures['em']:.3f} ({figures['scored']})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
