"""The figures of a suite: what answers against the sets, with the mean over sets, as papers of the field print it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from sleuth.statistics import macro_interval, mean_interval
from workflows.paired import MEASURES, Values, compare, system_name
from workflows.suites.choose import ChosenSet

System = tuple[str, str, str]
"""What answers: policy, mode and retriever."""
Found = Mapping[str, Mapping[str, Values]]
"""By set and measure, every question's value."""


def suite_figures(
    sets: Sequence[ChosenSet], by_system: Mapping[System, Found], resamples: int = 10_000
) -> dict[str, Any]:
    """The suite's part of ``metrics.json``: its ``sets``, a row in ``systems`` for whatever answers, ``changes``.

    A row's ``mean`` is that of its sets, each of equal weight (the macro mean). ``changes``: every two systems over
    the questions of all sets.
    """
    return {
        "sets": [
            {"name": chosen.name, "title": chosen.title, "group": chosen.settings.group, **chosen.record}
            for chosen in sets
        ],
        "systems": [_system(system, sets, found, resamples) for system, found in by_system.items()],
        "changes": [
            {"a": list(a), "b": list(b), **_change(by_system[a], by_system[b])} for a, b in combinations(by_system, 2)
        ],
    }


def _system(system: System, sets: Sequence[ChosenSet], found: Found, resamples: int) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(("policy", "mode", "retriever"), system, strict=True))
    columns = {measure: [list(found[chosen.name].get(measure, {}).values()) for chosen in sets] for measure in MEASURES}
    for measure, lists in columns.items():
        if not any(lists):
            continue
        means = {chosen.name: _mean(column) for chosen, column in zip(sets, lists, strict=True)}
        whole = all(column for column in lists)
        low, high = macro_interval(lists, resamples=resamples) if whole else (None, None)
        row[measure] = {
            "sets": means,
            "mean": sum(value or 0.0 for value in means.values()) / len(means) if whole else None,
            "mean_interval": [low, high],
        }
    row["n"] = {chosen.name: len(found[chosen.name].get("em", {})) for chosen in sets}
    row["by"] = _by(sets, found, resamples)
    return row


def _by(sets: Sequence[ChosenSet], found: Found, resamples: int) -> dict[str, dict[str, Any]]:
    """EM by field and value of it, over all sets that tell their questions apart by that field."""
    columns: dict[str, dict[str, list[float]]] = {}
    for chosen in sets:
        for field, labels in chosen.labels.items():
            for key, value in found[chosen.name].get("em", {}).items():
                columns.setdefault(field, {}).setdefault(labels[key] or "none", []).append(value)
    return {
        field: {
            value: {"em": _mean(column), "n": len(column), "em_interval": _interval(column, resamples)}
            for value, column in sorted(by_value.items())
        }
        for field, by_value in columns.items()
    }


def _change(a: Found, b: Found) -> dict[str, Any]:
    """Paired differences b - a over the questions of all sets, and how many were answered better or worse."""
    pooled_a, pooled_b = _pooled(a), _pooled(b)
    em_a, em_b = pooled_a.get("em", {}), pooled_b.get("em", {})
    shared = em_a.keys() & em_b.keys()
    better = sum(em_b[key] > em_a[key] for key in shared)
    worse = sum(em_b[key] < em_a[key] for key in shared)
    return {**compare(pooled_a, pooled_b), "better": better, "worse": worse}


def _pooled(found: Found) -> dict[str, Values]:
    """The questions of all sets together; one that two sets share counts in both."""
    pooled: dict[str, dict[tuple[str, str], float]] = {}
    for name, by_measure in found.items():
        for measure, values in by_measure.items():
            pooled.setdefault(measure, {}).update({(f"{name}/{key}", text): v for (key, text), v in values.items()})
    return dict(pooled)


def markdown(figures: Mapping[str, Any], measure: str = "em") -> str:
    """The table of a paper: a row for what answers, a column a set under its group, the mean last; in per cent."""
    sets = figures["sets"]
    groups = [one["group"] for one in sets]
    shown = [group if place == 0 or group != groups[place - 1] else "" for place, group in enumerate(groups)]
    lines = [] if not any(groups) else [_line(["", *shown, ""])]
    titles = _line(["", *(one["title"] for one in sets), "Avg."])
    rule = _line(["---", *("---:" for _ in sets), "---:"])
    lines = [*lines, rule, titles] if lines else [titles, rule]
    for row in figures["systems"]:
        if measure in row:
            cells = [per_cent(row[measure]["sets"][one["name"]]) for one in sets]
            lines.append(_line([system_name(row), *cells, per_cent(row[measure]["mean"])]))
    return "\n".join(lines) + "\n"


def per_cent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _mean(column: Sequence[float]) -> float | None:
    return sum(column) / len(column) if column else None


def _interval(column: Sequence[float], resamples: int) -> list[float]:
    found = mean_interval(column, resamples=resamples)
    return [found.low, found.high]
