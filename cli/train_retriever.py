"""``sleuth train-retriever`` and ``sleuth mine``: an encoder or reranker from its data to its index."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.config import fill_out
from envs.toy_world.config import WorldSettings
from retrieval.training.config import RetrieverTraining
from sleuth.settings import apply_override, read_layers, validate

if TYPE_CHECKING:
    from retrieval.training.pipeline import TrainingRun

Config = Annotated[Path, typer.Argument(help="YAML file of the run.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override a setting: key.sub=value. Repeatable.")]
Out = Annotated[Path | None, typer.Option(help="Run folder, instead of the config's.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where the run in this folder stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the run in this folder.")]

COLUMNS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "masked": "masked",
    "grad_norm": "grad norm",
    "learning_rate": "lr",
    "time/step": "s/step",
    "dev/recall": "recall",
    "dev/all_gold": "all gold",
    "dev/ndcg10": "nDCG@10",
}


class RetrieverRun(RetrieverTraining):
    """A training run, with a made-up world to make first where one is asked for. ``{out}`` is the run folder."""

    world: WorldSettings | None = None


def load_retriever_run(path: Path, overrides: list[str], out: Path | None = None) -> RetrieverRun:
    """The settings of a YAML file with ``key=value`` overrides. Raises ConfigError naming what to mend."""
    values = read_layers(path)
    for override in overrides:
        apply_override(values, override)
    if out is not None:
        values["out"] = str(out)
    return validate(RetrieverRun, fill_out(values), str(path))


def train_retriever(
    config: Config,
    set_: Set = None,
    out: Out = None,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Train an encoder or a reranker: world, mined negatives, training rounds, index, figures."""
    settings = load_retriever_run(config, set_ or [], out)
    with _claimed(settings, resume, overwrite) as run:
        from retrieval.training.pipeline import run_training

        _world(run, settings)
        figures = run_training(run)
        _draw(run)
    _tell(settings.out, figures)


def mine(
    config: Config,
    out: Annotated[Path, typer.Option("--out", "-o", help="Tevatron jsonl to write.")],
    set_: Set = None,
) -> None:
    """Mine hard negatives for the rows of a training config with its mining retriever; no training."""
    from cli.console import people
    from retrieval.training.pipeline import mine_to
    from sleuth.errors import ConfigError
    from sleuth.runs import RunFolder

    settings = load_retriever_run(config, set_ or [])
    if settings.mining is None:
        raise ConfigError(f"{config} has no section 'mining'", "name a retriever there")
    folder = RunFolder(settings.out)
    if settings.world is not None and not folder.stage_done("world"):
        with _claimed(settings, resume=True, overwrite=False) as begun:
            _world(begun, settings)
    report = mine_to(_run(settings, folder, resume=False), out)
    people().print(f"{out}: {report['kept']} negatives from {report['hits']} hits", markup=False)


@contextmanager
def _claimed(settings: RetrieverRun, resume: bool, overwrite: bool) -> Iterator[TrainingRun]:
    from cli.logs import quiet_libraries
    from cli.wiring import limit_threads
    from sleuth.runs import RunFolder

    quiet_libraries()
    limit_threads(settings.threads)
    folder = RunFolder(settings.out)
    plain = settings.model_dump(mode="json")
    with folder.claim(plain, resume=resume, overwrite=overwrite, may_differ=("out",), reread=_reread):
        yield _run(settings, folder, resume)


def _reread(saved: dict[str, Any]) -> dict[str, Any]:
    return validate(RetrieverRun, saved, "config.yaml of the run").model_dump(mode="json")


def _run(settings: RetrieverRun, folder: Any, resume: bool) -> TrainingRun:
    from cli.console import counting
    from retrieval.progress import build_progress
    from retrieval.training.pipeline import TrainingRun
    from sleuth.checkpoints import checkpoint_step, newest_complete
    from sleuth.protocols import MetricSink
    from sleuth.sinks import ConsoleSink, JsonlSink, MultiSink

    def sink_of(round_folder: Path) -> MetricSink:
        newest = newest_complete(round_folder / "checkpoints") if resume else None
        keep_to = checkpoint_step(newest) if newest else -1
        return MultiSink([ConsoleSink(COLUMNS), JsonlSink(round_folder / "metrics.jsonl", keep_to=keep_to)])

    return TrainingRun(with_packaged_models(settings), folder, resume, sink_of, counting, build_progress)


def with_packaged_models(settings: RetrieverRun) -> RetrieverRun:
    """``smollm2`` and GGUF files as backbones become the folders that they are converted to."""
    start = settings.encoder
    if start is None or start.backbone is None or not (start.backbone == "smollm2" or start.backbone.endswith(".gguf")):
        return settings
    from agent.policies.loading import resolve_model

    resolved = start.model_copy(update={"backbone": resolve_model(start.backbone)})
    return settings.model_copy(update={"encoder": resolved})


def _world(run: TrainingRun, settings: RetrieverRun) -> None:
    if settings.world is None or run.folder.stage_done("world"):
        return
    from envs.toy_world.generate import generate_world
    from envs.toy_world.write import write_world

    made = generate_world(settings.world)
    write_world(made, settings.out / "world", overwrite=True)
    run.folder.mark_done("world", {"passages": len(made.passages)})


def _draw(run: TrainingRun) -> None:
    """The curves of each round beside its metrics."""
    from sleuth.curves import curves_of, draw_curves
    from sleuth.sinks import read_metrics

    names = {"dev/recall": "dev recall", "dev/all_gold": "dev all gold", "accuracy": "batch accuracy", "loss": "loss"}
    for path in sorted(run.out.glob("round-*/metrics.jsonl")):
        curves = curves_of(read_metrics(path), names)
        if curves:
            draw_curves(curves, path.with_name("curves.png"), title=f"{run.out.name}, {path.parent.name}")


def _tell(out: Path, figures: dict[str, Any]) -> None:
    from cli.console import people

    console = people()
    for stage, values in figures.items():
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, int | float))
        console.print(f"{stage}: {shown}", markup=False, soft_wrap=True)
    console.print(f"in {out}", markup=False, soft_wrap=True)
