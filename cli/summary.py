"""What a finished run says about itself: the dev curve, in the terminal and as a PNG, and the test figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sleuth.curves import Curve, curves_of, draw_curves, terminal_curves
from sleuth.sinks import read_metrics


def print_summary(out: Path) -> None:
    """Show dev EM over steps, save it as ``curve.png``, and print the evaluation of each stage."""
    from cli.console import people

    console = people()
    curves = dev_curves(out)
    if curves:
        terminal_curves(curves, console, title="dev EM by optimizer step", bounds=(0.0, 1.0))
        draw_curves(
            curves,
            out / "curve.png",
            title="Dev questions while GRPO trains",
            y_label="exact match (greedy)",
            bounds=(0.0, 1.0),
        )
        console.print(f"curve: {out / 'curve.png'}", highlight=False)
    for path in sorted((out / "evaluation").glob("*/metrics.json")):
        figures = json.loads(path.read_text(encoding="utf-8"))
        low, high = figures.get("em_interval", (None, None))
        asked = f"{figures['n']}" if figures["scored"] == figures["n"] else f"{figures['scored']}/{figures['n']}"
        console.print(
            f"{path.parent.name:<18} EM {_fixed(figures['em'])} [{_fixed(low)}, {_fixed(high)}]"
            f"  F1 {_fixed(figures['f1'])}  n {asked}  searches {_fixed(figures['searches'], 2)}",
            highlight=False,
        )
        chain = hop_figures(figures["by_kind"])
        if chain:
            console.print(f"  one to three hops  EM {chain[0]:.3f}  n {chain[1]}", highlight=False)
        kinds = {kind: by["em"] for kind, by in figures["by_kind"].items() if by["em"] is not None}
        console.print("  " + "  ".join(f"{kind} {em:.3f}" for kind, em in sorted(kinds.items())), highlight=False)


def _fixed(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def hop_figures(by_kind: dict[str, Any]) -> tuple[float, int] | None:
    """EM over the questions that are chains of one to three searches, and their number."""
    chains = [by for kind, by in by_kind.items() if kind.endswith("_hop") and by["scored"]]
    count = sum(by["scored"] for by in chains)
    return (sum(by["em"] * by["scored"] for by in chains) / count, count) if count else None


def dev_curves(out: Path) -> list[Curve]:
    """Dev EM in all and by kind of question, as the run's metrics.jsonl has it; none before an evaluation."""
    path = out / "metrics.jsonl"
    rows = read_metrics(path) if path.exists() else []
    kinds = sorted({name for row in rows for name in row if name.startswith("dev/em_")})
    return curves_of(rows, {"dev/em": "all"} | {name: name.removeprefix("dev/em_") for name in kinds})
