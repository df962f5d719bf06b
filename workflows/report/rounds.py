"""What the report shows of co-training: a table of its rounds, and their evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sleuth.cotrain_layout import CotrainLayout
from sleuth.layout import EvaluationLayout, read_record

COLUMNS = ("round", "EM", "gold found", "recall, judged", "rows", "label precision", "queries", "new retriever")
_CHANGED = "to the round before"


def rounds_table(path: Path) -> dict[str, Any] | None:
    """Columns and rows of text, a row for each round that has ended; None for a run without rounds."""
    found = read_record(CotrainLayout(path).rounds)
    if not found or not found["rounds"]:
        return None
    return {"columns": COLUMNS, "rows": [_row(row) for row in found["rounds"]], "note": f"In brackets: {_CHANGED}."}


def round_evaluations(path: Path, rounds: int) -> Iterator[tuple[str, EvaluationLayout]]:
    """The evaluations of every round, from the start on, by name."""
    for number in range(rounds + 1):
        for name in ("dev", "test", "swapped"):
            yield f"round {number}, {name}", CotrainLayout(path).round(number).evaluation(name)


def rounds_ended(path: Path, rounds: int) -> bool:
    return len((read_record(CotrainLayout(path).rounds) or {}).get("rounds", ())) == rounds + 1


def _row(row: Mapping[str, Any]) -> list[str]:
    agent, made = row["after"]["agent"], row.get("rows") or {}
    change, asked = agent.get("to_before") or {}, made.get("asked") or {}
    judged, guard = row["after"].get("retriever") or {}, row.get("guard")
    said = "" if guard is None else "swapped in" if guard["swapped"] else "worse, not swapped in"
    held = f" ({guard['before']:.3f} → {guard['after']:.3f} held out)" if guard and "before" in guard else ""
    varied = [f"{name} {asked[name]:.2f}" for name in ("distinct", "copied", "repeated") if name in asked]
    return [
        str(row["round"]),
        _changed(agent["means"].get("em"), change),
        _changed(agent["means"].get("gold_recall"), change.get("gold_recall") or {}),
        _changed(judged.get("recall"), judged.get("to_before") or {}),
        f"{made['rows']:,}" if made else "–",
        f"{made['precision']:.3f}" if "precision" in made else "–",
        ", ".join(varied) or "–",
        f"{said}{held}" or "–",
    ]


def _changed(value: float | None, change: Mapping[str, Any]) -> str:
    if value is None:
        return "–"
    if "difference" not in change:
        return f"{value:.3f}"
    return f"{value:.3f} ({change['difference']:+.3f} [{change['low']:+.3f}, {change['high']:+.3f}])"
