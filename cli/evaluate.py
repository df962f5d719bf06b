"""``sleuth evaluate``: how good is a policy on a question file, or a prediction file that somebody made.

A model is a folder, a hub name, an adapter or a GGUF file; a run's folder or config stands for the policy that the
run trained, in the environment that it was trained in.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import people, print_json
from sleuth.errors import ConfigError

if TYPE_CHECKING:
    from cli.config import RunSettings

UNSCORED = 3
"""Exit status of an evaluation that ended, but with questions that could not be scored."""


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL...", help="Models, run folders or config files.", show_default=False),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="[NAME=]FILE", help="Question file. With a config: its data.dev.")
    ] = None,
    retriever: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]INDEX", help="Index to search, or a retriever in YAML. With a run: the run's."),
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(metavar="direct|cot|rag|search", help="How the policy answers; by default it searches."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Protocol: sleuth, search_r1 or minimal.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default a new one in runs/evaluate.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Episodes that advance together.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Answers a question: mean@k, pass@k, majority@k. Needs --temperature.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0, the default, is greedy.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Score this file of predictions in HotpotQA's layout; no model is run.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed evaluation in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the evaluation in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Answer every question and report EM and F1 with intervals, searches, hit rate and more.

    --data, --retriever and --mode can be given several times, and several models: every combination is evaluated,
    compared question by question, and laid out in one table and one bar chart.

    Exit status 3: it ended, but some questions could not be scored because the retriever failed.
    """
    if predictions is not None:
        if models:
            raise ConfigError("give either a model or --predictions, not both")
        played: dict[str, Any] = {"--retriever": retriever, "--mode": mode, "--preset": preset, "--set": overrides}
        played |= {"--batch-size": batch_size, "--samples": samples, "--temperature": temperature, "--resume": resume}
        for option, value in played.items():
            if value is not False and value not in (None, []):
                raise ConfigError(f"{option} means nothing beside --predictions: no model is run", "leave it out")
        if len(data or []) != 1:
            raise ConfigError("--predictions are of one file of questions", "name it: --data FILE")
        from cli.grid import named

        (questions,) = named(data or [], "--data").values()
        _score_file(predictions, questions, limit, out, overwrite, json)
        return
    if not models:
        raise ConfigError("there is nothing to evaluate", "give a model, a run folder, a config or --predictions FILE")
    from cli.grid import Options, cells_of, evaluate_grid
    from cli.play import Opened, play

    settled = Options(overrides or [], preset, limit, batch_size, samples, temperature)
    cells = cells_of(models, data or [], retriever or [], mode or [], settled)
    if len(cells) > 1:
        raise typer.Exit(evaluate_grid(cells, out or _grid_folder(), resume, overwrite, json))
    settings = cells[0].settings
    folder = out or _new_folder(models[0], settings)
    done = play(settings, folder, Opened(), resume=resume, overwrite=overwrite)
    from cli.tables import print_report

    console = people()
    print_report(
        done.report, f"{settings.policy.model} on {settings.data.dev}, mode {settings.environment.kind}", console
    )
    if judge := done.figures.get("judge"):
        right = "-" if judge["right"] is None else f"{100 * judge['right']:.1f} % right"
        console.print(f"{'judge':<22}{right}, of {judge['judged']} judged ({judge['model']})", markup=False)
    console.print(f"{'saved in':<22}{folder}", markup=False, soft_wrap=True)
    if json:
        print_json(dict(done.figures))
    if done.report.unscored:
        raise typer.Exit(UNSCORED)


def resolve(
    model: str,
    overrides: list[str],
    data: str | None = None,
    retriever: Any = None,
    mode: str | None = None,
    preset: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    samples: int | None = None,
    temperature: float | None = None,
) -> RunSettings:
    """The settings of an evaluation: those of the config or run that ``model`` names, options laid over them.

    ``retriever`` is what a command line names (see ``cli.retrievers``) or a mapping.
    """
    from cli.config import RunSettings
    from cli.model_settings import settings_of
    from cli.retrievers import retriever_values
    from sleuth.settings import apply_override, validate

    values = settings_of(model)
    for override in overrides:
        apply_override(values, override)
    environment = dict(values.get("environment") or {})
    if mode and not (mode == "search" and ":" in environment.get("kind", "")):
        environment["kind"] = mode
    if preset:
        environment["preset"] = preset
    if retriever:
        values["retriever"] = retriever_values(str(retriever)) if isinstance(retriever, str | Path) else retriever
    evaluation = dict(values.get("evaluation") or {})
    if data and not any(override.startswith("evaluation.limit=") for override in overrides):
        evaluation.pop("limit", None)  # the run's own is about its own file
    given = {"limit": limit, "batch_size": batch_size, "samples": samples, "temperature": temperature}
    evaluation |= {name: value for name, value in given.items() if value is not None}
    values |= {"environment": environment, "evaluation": evaluation}
    if data:
        values["data"] = {"dev": data}
    settings = validate(RunSettings, values, model)
    if not settings.data.dev:
        raise ConfigError("no questions are named", "--data FILE")
    if settings.retriever is None and settings.environment.kind in ("search", "rag"):
        raise ConfigError(
            f"mode {settings.environment.kind} needs something to search",
            "--retriever INDEX (made by: sleuth index), or --mode direct",
        )
    return settings


def _new_folder(model: str, settings: RunSettings) -> Path:
    stem = f"{Path(model).stem}-{Path(settings.data.dev or '').stem}-{settings.environment.kind.rpartition(':')[2]}"
    return Path("runs/evaluate") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _grid_folder() -> Path:
    return Path("runs/evaluate") / f"grid-{time.strftime('%Y%m%d-%H%M%S')}"


def _score_file(predictions: Path, data: str, limit: int | None, out: Path | None, overwrite: bool, json: bool) -> None:
    import json as json_module

    from cli.predictions import print_figures, score_file
    from sleuth.artifacts import atomic_write
    from sleuth.runs import RunFolder

    figures = score_file(predictions, data, limit)
    if out:
        with RunFolder(out).claim({"predictions": str(predictions), "data": data, "limit": limit}, overwrite=overwrite):
            atomic_write(out / "metrics.json", json_module.dumps(figures, indent=2) + "\n")
    print_figures(figures, f"{predictions} on {data}", people())
    if json:
        print_json(figures)
