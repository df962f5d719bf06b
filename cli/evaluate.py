"""``sleuth evaluate``: how good is a policy on a question file, or a prediction file that somebody made.

A model is a folder, a hub name, an adapter or a GGUF file; a run's folder or config stands for the policy that the
run trained, in the environment that it was trained in.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from cli.console import counting, people, print_json
from sleuth.errors import ConfigError

if TYPE_CHECKING:
    from agent.evaluate import EvaluationReport
    from cli.config import RunSettings
    from sleuth.protocols import Retriever

Mode = Literal["direct", "cot", "rag", "search"]
UNSCORED = 3
"""Exit status of an evaluation that ended, but with questions that could not be scored."""
_MAY_DIFFER = ("evaluation", "policy.max_rows", "policy.keep_cache", "policy.device")
"""What changes how fast an evaluation is, not what it says."""


def evaluate(
    model: Annotated[str | None, typer.Argument(help="Model, run folder or config file.", show_default=False)] = None,
    data: Annotated[str | None, typer.Option(help="Question file. With a config: its data.dev.")] = None,
    retriever: Annotated[Path | None, typer.Option(help="Index to search. With a run: the run's.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="How the policy answers; by default it searches.")] = None,
    preset: Annotated[str | None, typer.Option(help="Protocol: sleuth, search_r1 or minimal.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default a new one in runs/evaluate.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first questions.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Episodes that advance together.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting.")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Score this file of predictions in HotpotQA's layout; no model is run.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a killed evaluation in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the evaluation in --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the figures as one JSON object.")] = False,
) -> None:
    """Answer every question greedily and report EM and F1 with intervals, searches, hit rate and more.

    Exit status 3: it ended, but some questions could not be scored because the retriever failed.
    """
    if predictions is not None:
        if model is not None:
            raise ConfigError("give either a model or --predictions, not both")
        _score_file(predictions, data, limit, out, overwrite, json)
        return
    if model is None:
        raise ConfigError("there is nothing to evaluate", "give a model, a run folder, a config or --predictions FILE")
    settings = resolve(model, overrides or [], data, retriever, mode, preset, limit, batch_size)
    folder = out or _new_folder(model, settings)
    report = _play(settings, folder, resume, overwrite)
    from cli.tables import print_report

    console = people()
    print_report(report, f"{settings.policy.model} on {settings.data.dev}, mode {settings.environment.kind}", console)
    console.print(f"{'saved in':<22}{folder}", markup=False, soft_wrap=True)
    if json:
        print_json(report.to_dict())
    if report.unscored:
        raise typer.Exit(UNSCORED)


def resolve(
    model: str,
    overrides: list[str],
    data: str | None = None,
    retriever: Path | None = None,
    mode: Mode | None = None,
    preset: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
) -> RunSettings:
    """The settings of an evaluation: those of the config or run that ``model`` names, options laid over them."""
    from cli.config import RunSettings
    from cli.model_settings import settings_of
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
        values["retriever"] = {"index": str(retriever)}
    evaluation = dict(values.get("evaluation") or {})
    evaluation |= {name: value for name, value in (("limit", limit), ("batch_size", batch_size)) if value}
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


def _play(settings: RunSettings, folder: Path, resume: bool, overwrite: bool) -> EvaluationReport:
    from cli.logs import quiet_libraries

    quiet_libraries()
    from agent.evaluate import evaluate as run_evaluation
    from cli.wiring import limit_threads, make_driver, make_policy, make_retriever, read_questions
    from rewards.scorer import make_scorer
    from rewards.text_match import exact_match, f1
    from sleuth.runs import RunFolder

    assert settings.data.dev
    questions = read_questions(settings.data.dev, settings.evaluation.limit)
    searches = settings.environment.kind not in ("direct", "cot")
    retriever = make_retriever(settings.retriever) if searches else None
    run = RunFolder(folder)
    with run.claim(_identity(settings, retriever), resume=resume, overwrite=overwrite, may_differ=_MAY_DIFFER):
        limit_threads(settings.threads)
        policy, codec = make_policy(settings.policy)
        with counting("evaluating") as on_progress:
            return run_evaluation(
                make_driver(policy, codec, settings.environment, retriever),
                questions,
                metrics={"em": exact_match, "f1": f1},
                score=make_scorer(settings.rewards).score,
                out=folder,
                batch_size=settings.evaluation.batch_size,
                seed=settings.seed,
                resamples=settings.evaluation.bootstrap,
                on_progress=on_progress,
            )


def _identity(settings: RunSettings, retriever: Retriever | None) -> dict[str, Any]:
    """Everything that decides the figures. An evaluation is resumed with the same of it only."""
    from sleuth.artifacts import file_digest

    assert settings.data.dev
    kept = settings.model_dump(mode="json", include={"policy", "environment", "rewards", "evaluation", "seed"})
    data = Path(settings.data.dev)
    return {
        **kept,
        "retriever": settings.model_dump(mode="json")["retriever"] if retriever else None,
        "retriever_fingerprint": retriever.fingerprint if retriever else None,
        "data": {"path": str(data), "sha256": file_digest(data) if data.is_file() else None},
        "limit": settings.evaluation.limit,
        "weights": _weights_stamp(settings.policy.model),
    }


def _weights_stamp(model: str | None) -> list[str]:
    """Name, size and time of a local model's weight files: cheap to read, different when it was trained again."""
    folder = Path(model or "")
    if not model or not folder.exists():
        return []
    files = (
        [folder] if folder.is_file() else sorted(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    )
    return [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files]


def _new_folder(model: str, settings: RunSettings) -> Path:
    stem = f"{Path(model).stem}-{Path(settings.data.dev or '').stem}-{settings.environment.kind.rpartition(':')[2]}"
    return Path("runs/evaluate") / f"{stem}-{time.strftime('%Y%m%d-%H%M%S')}"


def _score_file(
    predictions: Path, data: str | None, limit: int | None, out: Path | None, overwrite: bool, json: bool
) -> None:
    import json as json_module

    from cli.predictions import print_figures, score_file
    from sleuth.artifacts import atomic_write
    from sleuth.runs import RunFolder

    if data is None:
        raise ConfigError("no questions are named", "--data FILE")
    figures = score_file(predictions, data, limit)
    if out:
        with RunFolder(out).claim({"predictions": str(predictions), "data": data, "limit": limit}, overwrite=overwrite):
            atomic_write(out / "metrics.json", json_module.dumps(figures, indent=2) + "\n")
    print_figures(figures, f"{predictions} on {data}", people())
    if json:
        print_json(figures)
