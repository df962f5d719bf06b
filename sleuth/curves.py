"""Learning curves: as a PNG, and as a character chart for the terminal."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_MARKERS = "●▲■◆○△□◇"
_COLOURS = ("cyan", "yellow", "green", "magenta", "blue", "red", "white", "bright_black")


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a plot: (step, value) in order of step."""

    label: str
    points: tuple[tuple[float, float], ...]


def curves_of(rows: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> list[Curve]:
    """Curves of the metrics ``names`` (name in a row -> label) from rows of ``metrics.jsonl``.

    Rows without a metric are skipped, as are metrics that occur in no row; the last of several values at a step counts.
    """
    found: dict[str, dict[float, float]] = {name: {} for name in names}
    for row in rows:
        for name in names:
            value = row.get(name)
            if isinstance(value, int | float):
                found[name][float(row["step"])] = float(value)
    return [Curve(names[name], tuple(sorted(points.items()))) for name, points in found.items() if points]


def draw_curves(
    curves: Sequence[Curve],
    path: str | Path,
    *,
    title: str = "",
    x_label: str = "optimizer step",
    y_label: str = "",
    bounds: tuple[float, float] | None = None,
) -> None:
    """Save the curves as a PNG, emphasising the first one. ``bounds`` fixes the vertical axis.

    Raises ValueError when there is nothing to draw.
    """
    curves = _drawn(curves)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for position, curve in enumerate(curves):
        steps, values = zip(*curve.points, strict=True)
        first = position == 0
        axes.plot(
            steps,
            values,
            marker="os^Dvp"[position % 6],
            markersize=5 if first else 3.5,
            linewidth=2.4 if first else 1.3,
            alpha=1.0 if first else 0.85,
            label=f"{curve.label} ({values[-1]:.2f})",
            zorder=3 if first else 2,
        )
    if bounds:
        margin = 0.03 * (bounds[1] - bounds[0])
        axes.set_ylim(bounds[0] - margin, bounds[1] + margin)
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), title="curve (last value)")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def terminal_curves(
    curves: Sequence[Curve],
    console: Console,
    *,
    title: str = "",
    bounds: tuple[float, float] | None = None,
    height: int = 13,
) -> None:
    """Print the curves as characters, each with its own marker so that they are distinguishable without colour.

    Where two overlap, the earlier curve is shown. Raises ValueError when there is nothing to draw.
    """
    curves = _drawn(curves)
    from rich.text import Text

    points = [point for curve in curves for point in curve.points]
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = bounds or (min(y for _, y in points), max(y for _, y in points))
    if low == high:
        low, high = low - 0.5, high + 0.5
    width = max(20, min(console.width, 80) - 9)
    cells = _plot(curves, width, height, (left, right), (low, high))
    if title:
        _line(console, Text(title, style="bold"))
    for row in range(height):
        value = high - (high - low) * row / (height - 1)
        axis = f"{value:7.2f} ┤" if row % 3 == 0 else "        │"
        text = Text(axis)
        for column in range(width):
            character, style = cells.get((column, row), (" ", ""))
            text.append(character, style=style)
        text.rstrip()
        _line(console, text)
    _line(console, Text("        └" + "─" * width))
    last = f"step {right:g}"
    _line(console, Text(" " * 9 + f"{left:g}".ljust(width - len(last)) + last))
    for position, curve in enumerate(curves):
        marker, colour = _MARKERS[position % len(_MARKERS)], _COLOURS[position % len(_COLOURS)]
        first, final = curve.points[0][1], curve.points[-1][1]
        _line(console, Text(" " * 9).append(marker, style=colour).append(f" {curve.label}  {first:.3f} → {final:.3f}"))


def _plot(
    curves: Sequence[Curve], width: int, height: int, x_range: tuple[float, float], y_range: tuple[float, float]
) -> dict[tuple[int, int], tuple[str, str]]:
    """(column, row from the top) -> character and style; markers over lines, earlier curves over later ones."""
    lines: dict[tuple[int, int], tuple[str, str]] = {}
    marks: dict[tuple[int, int], tuple[str, str]] = {}
    for position in reversed(range(len(curves))):
        marker, colour = _MARKERS[position % len(_MARKERS)], _COLOURS[position % len(_COLOURS)]
        places = [
            (_cell(x, x_range, width), height - 1 - _cell(y, y_range, height)) for x, y in curves[position].points
        ]
        for (x0, y0), (x1, y1) in itertools.pairwise(places):
            for column in range(x0 + 1, x1):
                lines[column, round(y0 + (y1 - y0) * (column - x0) / (x1 - x0))] = ("·", colour)
        marks |= dict.fromkeys(places, (marker, colour))
    return lines | marks


def _cell(value: float, bounds: tuple[float, float], cells: int) -> int:
    low, high = bounds
    share = 0.5 if high == low else (value - low) / (high - low)
    return round(max(0.0, min(1.0, share)) * (cells - 1))


def _line(console: Console, text: Any) -> None:
    console.print(text, soft_wrap=True, highlight=False)


def _drawn(curves: Sequence[Curve]) -> list[Curve]:
    """The curves that have points. Raises ValueError when none has."""
    drawn = [curve for curve in curves if curve.points]
    if not drawn:
        raise ValueError("there is nothing to draw")
    return drawn
