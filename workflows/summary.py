"""The summary of a finished run: its dev curve, and its results on chains of searches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sleuth.curves import Curve, curves_of
from sleuth.layout import RunLayout
from sleuth.sinks import read_metrics


def hop_figures(by_kind: dict[str, Any]) -> tuple[float, int] | None:
    """EM over the questions that take a chain of one to three searches, and their number."""
    chains = [by for kind, by in by_kind.items() if kind.endswith("_hop") and by["scored"]]
    count = sum(by["scored"] for by in chains)
    return (sum(by["em"] * by["scored"] for by in chains) / count, count) if count else None


def dev_curves(out: Path) -> list[Curve]:
    """Dev EM, overall and by kind of question, from the run's metrics.jsonl; empty before the first evaluation."""
    path = RunLayout(out).metrics
    rows = read_metrics(path) if path.exists() else []
    kinds = sorted({name for row in rows for name in row if name.startswith("dev/em_")})
    return curves_of(rows, {"dev/em": "all"} | {name: name.removeprefix("dev/em_") for name in kinds})
