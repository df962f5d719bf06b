"""``sleuth evaluate``: evaluates a policy on a question file, or scores an existing prediction file.

A model is a folder, a hub name, an adapter or a GGUF file; a run's folder or config means the policy that the run
trained, in the run's own environment.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.console import counting, error_console, print_json
from sleuth.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from workflows.config import RunSettings
    from workflows.grid import Cell, Options
    from workflows.suites.choose import ChosenSet

UNSCORED = 3
"""Exit status of an evaluation that ended with questions that could not be scored."""


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
        typer.Option(
            metavar="direct|cot|rag|search",
            help="How the policy answers; search by default. rag@3: with 3 passages; NAME:rag: the model NAME alone.",
        ),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="Prompts: sleuth, short, search_r1 or minimal.")] = None,
    suite: Annotated[
        str | None, typer.Option(metavar="NAME|FILE", help="A suite of sets: search_r1, wiki, or one in YAML.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out the sets of the suite that are not here.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default a new one in runs/evaluate.")] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="So many questions: the first, or as data.dev_draw says; of a suite, by seed."),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Episodes run together in one batch.")] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Answers per question: mean@k, pass@k, majority@k. Needs --temperature.")
    ] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="Temperature; 0, the default, is greedy.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Score this prediction file in HotpotQA's layout, without running a model.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted evaluation in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the evaluation in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the metrics as one JSON object.")] = False,
) -> None:
    """Answer every question and report EM and F1 with intervals, searches, hit rate and more.

    --data, --retriever and --mode can be repeated, and several models given: every combination is evaluated,
    compared question by question, and shown in one table and one bar chart. --suite takes the place of --data: its
    sets are found before anything is asked, and the table ends with the mean over them.

    Exit status 3: some questions could not be scored because the retriever, the environment or a reward failed.
    """
    if predictions is not None:
        if models:
            raise ConfigError("give either a model or --predictions, not both")
        played: dict[str, Any] = {"--retriever": retriever, "--mode": mode, "--preset": preset, "--set": overrides}
        played |= {"--batch-size": batch_size, "--samples": samples, "--temperature": temperature, "--resume": resume}
        _score_file(predictions, data or [], played, limit, out, overwrite, json)
        return
    if not models:
        raise ConfigError("there is nothing to evaluate", "give a model, a run folder, a config or --predictions FILE")
    if suite is None and skip_missing:
        raise ConfigError("--skip-missing goes with --suite")
    if suite is not None and data:
        raise ConfigError("give either --data or --suite")
    from workflows.grid import Options, cells_of

    options = Options(overrides or [], preset, limit, batch_size, samples, temperature)
    if suite is not None:
        status = _suite(suite, skip_missing, models, retriever or [], mode or [], options, out, resume, overwrite, json)
        raise typer.Exit(status)
    cells = cells_of(models, data or [], retriever or [], mode or [], options)
    if len(cells) > 1:
        raise typer.Exit(_grid(cells, out or _grid_folder(), resume, overwrite, json))
    settings = cells[0].settings
    raise typer.Exit(_single(settings, out or _new_folder(models[0], settings), resume, overwrite, json))


def _single(settings: RunSettings, folder: Path, resume: bool, overwrite: bool, json: bool) -> int:
    """Evaluate one policy on one file, then print its figures. Returns the exit status."""
    from cli.tables import print_report
    from workflows.play import Opened, play

    with Opened() as opened:
        done = play(settings, folder, opened, resume=resume, overwrite=overwrite, progress=counting)
    console = error_console()
    title = f"{settings.policy.model} on {settings.data.dev}, mode {settings.environment.kind}"
    print_report(done.report, title, console)
    if judge := done.figures.get("judge"):
        right = "-" if judge["right"] is None else f"{100 * judge['right']:.1f} % right"
        console.print(f"{'judge':<22}{right}, of {judge['judged']} judged ({judge['model']})", markup=False)
    console.print(f"{'saved in':<22}{folder}", markup=False, soft_wrap=True)
    if json:
        print_json(dict(done.figures))
    return UNSCORED if done.report.unscored else 0


def _suite(
    name: str,
    skip_missing: bool,
    models: Sequence[str],
    retrievers: Sequence[str],
    modes: Sequence[str],
    options: Options,
    out: Path | None,
    resume: bool,
    overwrite: bool,
    json: bool,
) -> int:
    """Find the questions of every set, then evaluate them as a grid. Returns the exit status."""
    from dataclasses import replace

    from sleuth.layout import GridLayout
    from workflows.grid import cells_of
    from workflows.suites.choose import choose_sets
    from workflows.suites.config import load_suite, split_overrides

    of_suite, of_run = split_overrides(options.overrides)
    sets, left_out = choose_sets(load_suite(name, of_suite), name, options.limit, skip_missing=skip_missing)
    console = error_console()
    for chosen in sets:
        console.print(
            f"{chosen.name}: {len(chosen.lines):,} of {chosen.total:,} questions of {chosen.source}",
            markup=False,
            soft_wrap=True,
        )
    if left_out:
        console.print(f"[yellow]left out, not here:[/] {', '.join(left_out)}")
    folder = out or _grid_folder(Path(name).stem)
    files = [f"{chosen.name}={GridLayout(folder).questions(chosen.name)}" for chosen in sets]
    cells = cells_of(models, files, retrievers, modes, replace(options, overrides=of_run, limit=None))
    return _grid(cells, folder, resume, overwrite, json, sets)


def _grid(
    cells: Sequence[Cell], out: Path, resume: bool, overwrite: bool, json: bool, sets: Sequence[ChosenSet] = ()
) -> int:
    """Evaluate every cell, then print one table and draw one chart. Returns the exit status."""
    from cli.grid_show import chart, print_suite, print_table
    from sleuth.layout import GridLayout
    from workflows.grid import evaluate_grid

    console = error_console()

    def on_cell(number: int, cell: Cell) -> None:
        console.print(f"{number}/{len(cells)}  {cell.folder}", markup=False, soft_wrap=True)

    content = evaluate_grid(cells, out, resume, overwrite, on_cell, counting, sets)
    rows, layout = content["cells"], GridLayout(out)
    chart(rows, layout.chart)
    print_table(rows, content["comparisons"], console)
    saved = [layout.metrics.name, layout.chart.name]
    if sets:
        from sleuth.artifacts import atomic_write
        from workflows.suites.table import markdown

        atomic_write(layout.table, markdown(content["suite"]))
        print_suite(content["suite"], console)
        saved.append(layout.table.name)
    console.print(f"saved in {out}: {', '.join(saved)}", markup=False, soft_wrap=True)
    if json:
        print_json(content)
    return UNSCORED if any(row["unscored"] for row in rows) else 0


def _new_folder(model: str, settings: RunSettings) -> Path:
    stem = f"{Path(model).stem}-{Path(settings.data.dev or '').stem}-{settings.environment.kind.rpartition(':')[2]}"
    return Path("runs/evaluate") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _grid_folder(name: str = "grid") -> Path:
    return Path("runs/evaluate") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


def _score_file(
    predictions: Path,
    data: Sequence[str],
    played: Mapping[str, Any],
    limit: int | None,
    out: Path | None,
    overwrite: bool,
    json: bool,
) -> None:
    """Score predictions that are there. Raises ConfigError for an option of ``played``: it needs a model."""
    from sleuth.layout import EvaluationLayout, write_record
    from sleuth.runs import RunFolder
    from workflows.grid import parse_named
    from workflows.predictions import score_file

    for option, value in played.items():
        if value is not False and value not in (None, []):
            raise ConfigError(f"{option} does not apply to --predictions: no model is run", "leave it out")
    if len(data) != 1:
        raise ConfigError("--predictions needs exactly one question file", "add --data FILE")
    (questions,) = parse_named(data, "--data").values()
    figures = score_file(predictions, questions, limit)
    if out:
        scored = {"predictions": str(predictions), "data": questions, "limit": limit}
        with RunFolder(out).claim(scored, overwrite=overwrite):
            write_record(EvaluationLayout(out).metrics, figures)
    _print_figures(figures, f"{predictions} on {questions}", error_console())
    if json:
        print_json(figures)


def _print_figures(figures: Mapping[str, Any], title: str, console: Console) -> None:
    """EM and F1 with intervals, then the other figures."""
    from sleuth.statistics import explained, methods_of

    console.print(title, style="bold", markup=False, soft_wrap=True)
    for name, value in figures.items():
        if name == "interval_methods" or name.endswith("_interval"):
            continue
        low, high = figures.get(f"{name}_interval", (None, None))
        shown = str(value) if isinstance(value, int) else f"{value:.4f}"
        interval = "" if low is None else f"  [{low:.4f}, {high:.4f}] 95 %"
        console.print(f"{name.replace('_', ' '):<22}{shown}{interval}", markup=False, soft_wrap=True)
    console.print(explained("95 % intervals", [methods_of(figures)]), soft_wrap=True, highlight=False)
    if figures["missing"]:
        console.print(f"{figures['missing']} of {figures['n']} questions have no prediction and count as 0.")
