"""What a finished run says about itself: the dev curve, in the terminal and as a PNG, and the test figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sleuth.sinks import read_metrics

_BARS = 40


def print_summary(out: Path) -> None:
    """Show dev EM by step as bars, save ``curve.png``, and print the evaluation of each stage."""
    from cli.console import people

    console = people()
    rows = dev_rows(out)
    for row in rows:
        bar = "█" * round(_BARS * row["dev/em"])
        console.print(f"step {row['step']:>4}  dev EM {row['dev/em']:.3f}  {bar}", highlight=False)
    if rows:
        draw_curve(rows, out / "curve.png")
        console.print(f"curve: {out / 'curve.png'}", highlight=False)
    for path in sorted((out / "evaluation").glob("*/metrics.json")):
        figures = json.loads(path.read_text(encoding="utf-8"))
        low, high = figures.get("em_interval", (float("nan"), float("nan")))
        console.print(
            f"{path.parent.name:<18} EM {figures['em']:.3f} [{low:.3f}, {high:.3f}]  F1 {figures['f1']:.3f}"
            f"  n {figures['n']}  searches {figures['searches']:.2f}",
            highlight=False,
        )
        chain = hop_figures(figures["by_kind"])
        if chain:
            console.print(f"  one to three hops  EM {chain[0]:.3f}  n {chain[1]}", highlight=False)
        kinds = {kind: by["em"] for kind, by in figures["by_kind"].items() if by["em"] is not None}
        console.print("  " + "  ".join(f"{kind} {em:.3f}" for kind, em in sorted(kinds.items())), highlight=False)


def hop_figures(by_kind: dict[str, Any]) -> tuple[float, int] | None:
    """EM over the questions that are chains of one to three searches, and their number."""
    chains = [by for kind, by in by_kind.items() if kind.endswith("_hop") and by["scored"]]
    count = sum(by["scored"] for by in chains)
    return (sum(by["em"] * by["scored"] for by in chains) / count, count) if count else None


def dev_rows(out: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl that evaluated the dev questions, by step."""
    path = out / "metrics.jsonl"
    return [row for row in read_metrics(path) if "dev/em" in row] if path.exists() else []


def draw_curve(rows: list[dict[str, Any]], path: Path) -> None:
    """Dev EM, in all and by kind of question, against optimizer steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), layout="constrained")
    steps = [row["step"] for row in rows]
    kinds = sorted({name for row in rows for name in row if name.startswith("dev/em_")})
    for name in kinds:
        axes.plot(steps, [row.get(name) for row in rows], lw=1, alpha=0.7, label=name.removeprefix("dev/em_"))
    axes.plot(steps, [row["dev/em"] for row in rows], color="black", lw=2.5, marker="o", label="all")
    axes.set(xlabel="optimizer step", ylabel="dev exact match", ylim=(0, 1), title="GRPO from the warm start")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
