"""A bar chart with intervals, as a PNG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar: its group on the horizontal axis, its label in the legend, its value with a confidence interval."""

    group: str
    label: str
    value: float
    low: float
    high: float


def draw_bars(bars: Sequence[Bar], path: str | Path, *, title: str = "", y_label: str = "") -> None:
    """Save the bars as a PNG, side by side within a group. Raises ValueError when there are none."""
    if not bars:
        raise ValueError("there is nothing to draw")
    from matplotlib.figure import Figure

    groups, labels = list(dict.fromkeys(b.group for b in bars)), list(dict.fromkeys(b.label for b in bars))
    figure = Figure(figsize=(max(6.4, 1.2 + 0.5 * len(groups) * len(labels)), 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(labels)
    for position, label in enumerate(labels):
        mine = [bar for bar in bars if bar.label == label]
        places = [groups.index(bar.group) + (position - (len(labels) - 1) / 2) * width for bar in mine]
        values = [bar.value for bar in mine]
        spread = [[bar.value - bar.low for bar in mine], [bar.high - bar.value for bar in mine]]
        drawn = axes.bar(places, values, width * 0.92, yerr=spread, capsize=3, label=label)
        axes.bar_label(drawn, fmt="%.2f", padding=2, fontsize=8)
    axes.set_xticks(range(len(groups)), groups)
    axes.set(title=title, ylabel=y_label)
    axes.set_ylim(0, max(bar.high for bar in bars) * 1.12 or 1.0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
