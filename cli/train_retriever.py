"""``sleuth train-retriever`` and ``sleuth mine``: trains an encoder or reranker, from its data to its index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import counting, error_console
from cli.options import Out, Overwrite, Resume, Set

Config = Annotated[Path, typer.Argument(help="YAML file of the run.")]


def train_retriever(
    config: Config,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train an encoder or a reranker: world, hard negatives, training rounds, index, evaluation."""
    from workflows.retriever_training import claimed, draw_curves_of, load_retriever_run, make_world

    settings = load_retriever_run(config, set_ or [], out)
    with claimed(settings, resume, overwrite, counting) as run:
        from retrieval.training.stages import run_all, stage_runs

        make_world(run, settings)
        figures = run_all(run)
        for part in stage_runs(run):
            draw_curves_of(part)
    _print_figures(settings.out, figures)


def mine(
    config: Config,
    out: Annotated[Path, typer.Option("--out", "-o", help="Tevatron jsonl to write.")],
    set_: Set = None,
) -> None:
    """Mine hard negatives for a training config's rows with its mining retriever, without training."""
    from retrieval.training.pipeline import mine_to
    from sleuth.errors import ConfigError
    from workflows.retriever_training import load_retriever_run, make_world, prepared

    settings = load_retriever_run(config, set_ or [])
    if settings.mining is None:
        raise ConfigError(f"{config} has no section 'mining'", "add one with a retriever")
    with prepared(settings, counting, out) as run:
        make_world(run, settings)
        report = mine_to(run, out)
    taught = f", {report['scored']} passages scored" if "scored" in report else ""
    error_console().print(f"{out}: {report['kept']} negatives from {report['hits']} hits{taught}", markup=False)


def _print_figures(out: Path, figures: dict[str, Any]) -> None:
    console = error_console()
    for stage, values in figures.items():
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        shown = "  ".join(f"{name} {_number(value)}" for name, value in numbers.items())
        console.print(f"{stage}: {shown}", markup=False, soft_wrap=True)
    console.print(f"in {out}", markup=False, soft_wrap=True)


def _number(value: float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}"
