"""Training of an encoder or reranker: the settings of a run, its world, its folder and its curves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import model_validator

from envs.toy_world.config import WorldSettings
from hub.models import SMOLLM2, resolve_model
from retrieval.training.config import RetrieverTraining
from retrieval.training.stages_config import as_runs
from sleuth.checkpoints import checkpoint_step, newest_complete
from sleuth.layout import RoundLayout
from sleuth.protocols import MetricSink
from sleuth.runs import RunFolder, texts_in
from sleuth.settings import apply_override, read_layers, validate
from sleuth.sinks import ConsoleSink, JsonlSink, MultiSink
from workflows.config import fill_out
from workflows.logs import quiet_libraries
from workflows.wiring import limit_threads

if TYPE_CHECKING:
    from retrieval.training.pipeline import TrainingRun
    from retrieval.training.start import Counting

_FREE = ("out", "threads")
"""Settings that a resumed training may change."""
COLUMNS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "masked": "masked",
    "kl": "kl",
    "margin_mse": "margin mse",
    "grad_norm": "grad norm",
    "learning_rate": "lr",
    "time/step": "s/step",
    "dev/recall": "recall",
    "dev/all_gold": "all gold",
    "dev/ndcg10": "nDCG@10",
}


class RetrieverRun(RetrieverTraining):
    """A training run, with a made-up world to create first if the config has one. ``{out}`` is the run folder."""

    world: WorldSettings | None = None

    @model_validator(mode="after")
    def _stages_are_runs(self) -> Self:
        """What a stage cannot do is said before the ones ahead of it are trained."""
        as_runs(self)
        return self


def load_retriever_run(path: Path, overrides: list[str], out: Path | None = None) -> RetrieverRun:
    """The settings of a YAML file with ``key=value`` overrides. Raises ConfigError naming what to fix."""
    values = read_layers(path)
    for override in overrides:
        apply_override(values, override)
    if out is not None:
        values["out"] = str(out)
    return validate(RetrieverRun, fill_out(values), str(path))


@contextmanager
def claimed(settings: RetrieverRun, resume: bool, overwrite: bool, counting: Counting) -> Iterator[TrainingRun]:
    """The run in its folder, which is this process's while the block lasts."""
    quiet_libraries()
    limit_threads(settings.threads)
    folder = RunFolder(settings.out)
    plain = settings.model_dump(mode="json")
    with folder.claim(plain, resume=resume, overwrite=overwrite, may_differ=_FREE, reread=_reread):
        yield training_run(settings, folder, resume, counting)


@contextmanager
def prepared(settings: RetrieverRun, counting: Counting, out: Path) -> Iterator[TrainingRun]:
    """As `claimed`, for a command that does a part of the run's work alone: the run itself can begin later.

    ``out`` is the file that it writes. Where it and the indexes it may make lie elsewhere, no run folder is made.
    """
    quiet_libraries()
    limit_threads(settings.threads)
    folder, inside = RunFolder(settings.out), settings.out.resolve()
    mining = settings.mining.model_dump(mode="json") if settings.mining else {}
    written = any(inside in Path(text).resolve().parents for text in (str(out), *texts_in(mining)))
    if settings.world is None and not written:
        yield training_run(settings, folder, False, counting)
        return
    plain = settings.model_dump(mode="json")
    unmade = settings.world is not None and not folder.stage_done("world")
    own = folder.begun and unmade  # the world of a run that is there is made with its settings alone
    with folder.claim(plain, resume=True, may_differ=_FREE, reread=_reread) if own else folder.prepare(plain):
        yield training_run(settings, folder, False, counting)


def _reread(saved: dict[str, Any]) -> dict[str, Any]:
    return validate(RetrieverRun, saved, "config.yaml of the run").model_dump(mode="json")


def training_run(settings: RetrieverRun, folder: RunFolder, resume: bool, counting: Counting) -> TrainingRun:
    from retrieval.progress import build_progress
    from retrieval.training.pipeline import TrainingRun

    def sink_of(layout: RoundLayout) -> MetricSink:
        newest = newest_complete(layout.checkpoints) if resume else None
        keep_to = checkpoint_step(newest) if newest else -1
        return MultiSink([ConsoleSink(COLUMNS), JsonlSink(layout.metrics, keep_to=keep_to)])

    return TrainingRun(with_packaged_models(settings), folder, resume, sink_of, counting, build_progress)


def with_packaged_models(settings: RetrieverRun) -> RetrieverRun:
    """Replaces ``smollm2`` and GGUF files as backbones by the folders that they are converted to."""
    start = settings.encoder
    if start is None or start.backbone is None or not (start.backbone == SMOLLM2 or start.backbone.endswith(".gguf")):
        return settings
    from retrieval.encoders.assembly import ENCODER

    resolved = start.model_copy(update={"backbone": resolve_model(start.backbone, ENCODER)})
    return settings.model_copy(update={"encoder": resolved})


def make_world(run: TrainingRun, settings: RetrieverRun) -> None:
    if settings.world is None or run.folder.stage_done("world"):
        return
    from envs.toy_world.generate import generate_world
    from envs.toy_world.write import write_world

    made = generate_world(settings.world)
    write_world(made, run.layout.world, overwrite=True)
    run.folder.mark_done("world", {"passages": len(made.passages)})


def draw_curves_of(run: TrainingRun) -> None:
    """Draw the curves of each round next to its metrics."""
    from sleuth.curves import curves_of, draw_curves
    from sleuth.sinks import read_metrics

    names = {"dev/recall": "dev recall", "dev/all_gold": "dev all gold", "accuracy": "batch accuracy", "loss": "loss"}
    for layout in run.layout.rounds():
        curves = curves_of(read_metrics(layout.metrics), names) if layout.metrics.exists() else []
        if curves:
            draw_curves(curves, layout.curves, title=f"{run.layout.out.name}, {layout.folder.name}")
