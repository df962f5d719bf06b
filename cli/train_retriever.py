"""``sleuth train-retriever`` and ``sleuth mine``: trains an encoder or reranker, from its data to its index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import counting, error_console

Config = Annotated[Path, typer.Argument(help="YAML file of the run.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value. Repeatable.")]
Out = Annotated[Path | None, typer.Option(help="Run folder, instead of the config's.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in this folder.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in this folder.")]


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
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, int | float))
        console.print(f"{stage}: {shown}", markup=False, soft_wrap=True)
    console.print(f"in {out}", markup=False, soft_wrap=True)
