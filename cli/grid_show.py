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


def print_suite(suite: Mapping[str, Any], console: Console) -> None:
    """EM in per cent, a column a set and the mean last; then by field of the questions, and who changed what."""
    from workflows.paired import system_name
    from workflows.suites.table import per_cent

    wide = Console(file=console.file, width=max(console.width, 180)) if not console.is_terminal else console
    table = Table(box=None, pad_edge=False, header_style="bold", title="EM, %", title_justify="left")
    table.add_column("")
    for one in suite["sets"]:
        over = f"{one['group']}\n" if one["group"] else ""
        table.add_column(Text(f"{over}{one['title']}\nn = {one['questions']:,}"), justify="right")
    for name in ("Avg. [95 %]", "F1", "reward", "gold found", "searches"):
        table.add_column(name, justify="right")
    for row in suite["systems"]:
        em = row.get("em", {"sets": {}, "mean": None, "mean_interval": [None, None]})
        means = [per_cent(em["sets"].get(one["name"])) for one in suite["sets"]]
        low, high = em["mean_interval"]
        mean = per_cent(em["mean"]) + ("" if low is None else f" [{per_cent(low)}, {per_cent(high)}]")
        others = [row.get(name, {}).get("mean") for name in ("f1", "reward", "gold_recall", "searches")]
        rest = ["-" if value is None else f"{value:.3f}" for value in others]
        table.add_row(Text(system_name(row)), *means, mean, *rest)
    wide.print(table)
    for field in dict.fromkeys(field for row in suite["systems"] for field in row["by"]):
        wide.print(_by_field(suite["systems"], field))
    for change in suite["changes"]:
        console.print(_changed(change), markup=False, highlight=False, soft_wrap=True)


def _by_field(systems: Sequence[CellFigures], field: str) -> Table:
    from workflows.paired import system_name

    values = sorted({value for row in systems for value in row["by"].get(field, {})})
    table = Table(box=None, pad_edge=False, header_style="bold", title=f"EM by {field}", title_justify="left")
    table.add_column("")
    for value in values:
        table.add_column(Text(value), justify="right")
    for row in systems:
        table.add_row(Text(system_name(row)), *(_of_value(row["by"].get(field, {}).get(value)) for value in values))
    return table


def _of_value(figures: Mapping[str, Any] | None) -> str:
    return "-" if figures is None or figures["em"] is None else f"{figures['em']:.3f} ({figures['n']})"


def _changed(change: Mapping[str, Any]) -> str:
    """One line: how the second system differs from the first over the questions of all sets."""
    a, b = (" ".join(part for part in system if part != "-") for system in (change["a"], change["b"]))
    if "difference" not in change:
        return f"{a} -> {b}: no question in common"
    said = f"{a} -> {b}: {change['better']} better, {change['worse']} worse of {change['n']:,}; "
    said += ", ".join(
        f"{label} {found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}] p={found['p_value']:.3f}"
        for label, found in (("EM", change), ("F1", change.get("f1")), ("reward", change.get("reward")))
        if found
    )
    return said


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
