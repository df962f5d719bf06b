"""Prints a summary of a finished run: the dev curve, in the terminal and as a PNG, and the test metrics."""

from __future__ import annotations

from pathlib import Path

from cli.console import error_console
from sleuth.curves import draw_curves, terminal_curves
from sleuth.layout import RunLayout, read_record
from sleuth.statistics import explained, methods_of
from workflows.summary import dev_curves, hop_figures


def print_summary(out: Path) -> None:
    """Show dev EM over steps, save it as ``curve.png``, and print the evaluation of each stage."""
    console, layout = error_console(), RunLayout(out)
    curves = dev_curves(out)
    if curves:
        terminal_curves(curves, console, title="dev EM by optimizer step", bounds=(0.0, 1.0))
        draw_curves(
            curves,
            layout.curve,
            title="Dev questions during GRPO",
            y_label="exact match (greedy)",
            bounds=(0.0, 1.0),
        )
        console.print(f"curve: {layout.curve}", highlight=False)
    methods = []
    for evaluation in layout.evaluations():
        figures = read_record(evaluation.metrics)
        if figures is None:
            continue
        methods.append({name: method for name, method in methods_of(figures).items() if name == "em"})
        low, high = figures.get("em_interval", (None, None))
        asked = f"{figures['n']}" if figures["scored"] == figures["n"] else f"{figures['scored']}/{figures['n']}"
        console.print(
            f"{evaluation.folder.name:<18} EM {_fixed(figures['em'])} [{_fixed(low)}, {_fixed(high)}]"
            f"  F1 {_fixed(figures['f1'])}  n {asked}  searches {_fixed(figures['searches'], 2)}",
            highlight=False,
        )
        chain = hop_figures(figures["by_kind"])
        if chain:
            console.print(f"  one to three hops  EM {chain[0]:.3f}  n {chain[1]}", highlight=False)
        found = {"gold found": figures.get("gold_recall"), "any gold": figures.get("alternatives_recall")}
        if shares := [f"{name} {_fixed(value)}" for name, value in found.items() if value is not None]:
            console.print("  " + "  ".join(shares), highlight=False)
        groups = figures.get("by_pack") or figures["by_kind"]
        kinds = {kind: by["em"] for kind, by in groups.items() if by["em"] is not None}
        console.print("  " + "  ".join(f"{kind} {em:.3f}" for kind, em in sorted(kinds.items())), highlight=False)
    if said := explained("95 % intervals", methods):
        console.print(said, highlight=False, soft_wrap=True)


def _fixed(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
