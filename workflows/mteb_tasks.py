"""Runs tasks of mteb with mteb's own runner: retrieval, reranking, STS and whatever else takes vectors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.threads import use_threads
from sleuth.errors import ConfigError, DataError, MissingExtraError, did_you_mean, first_line
from workflows.logs import quiet_libraries
from workflows.retrieval_jobs import PLACE, made_from
from workflows.retrievers import open_alone, retriever_settings


@dataclass(frozen=True, slots=True)
class TaskScore:
    """The main score of a task, over its splits and subsets, and all scores by split."""

    task: str
    kind: str
    measure: str
    score: float
    scores: Mapping[str, Any]


def run_tasks(
    given: str, overrides: Sequence[str], names: Sequence[str], name: str | None, cache: Path | None, batch_size: int
) -> list[TaskScore]:
    """Evaluate the model ``given`` on tasks, benchmarks or dotted paths of one's own tasks.

    ``given``: an encoder, a cross-encoder, a dense index (its encoder), or settings of a retriever whose index has
    ``{set}`` in its path. ``cache`` keeps results as mteb does, and finished ones are not run again.
    """
    try:
        import mteb
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "mteb", "mteb", "running tasks of mteb") from None
    quiet_libraries()
    tasks = [task for each in names for task in _tasks(each)]
    model = _model(given, overrides, name or given)
    use_threads(None)
    try:
        found = mteb.evaluate(
            model,
            tasks,
            cache=mteb.ResultCache(cache) if cache else None,
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
            show_progress_bar=False,
            co2_tracker=False,
        )
    except (OSError, ValueError) as error:  # data that cannot be loaded is told in many ways
        raise DataError(f"mteb could not run {', '.join(names)}: {first_line(error)}") from error
    by_name = {task.metadata.name: task for task in tasks}
    return [_score(by_name[result.task_name], result) for result in found.task_results]


def _score(task: Any, result: Any) -> TaskScore:
    metadata = task.metadata
    return TaskScore(metadata.name, metadata.type, metadata.main_score, float(result.get_score()), result.scores)


def _tasks(name: str) -> list[Any]:
    """The task, the tasks of the benchmark, or the task of one's own that ``name`` names."""
    import mteb

    if ":" in name:
        from sleuth.plugins import load_object

        return [load_object(name)()]
    for find in (lambda: [mteb.get_task(name)], lambda: list(mteb.get_benchmark(name).tasks)):
        with contextlib.suppress(KeyError, ValueError):
            return find()
    known = [task.metadata.name for task in mteb.get_tasks(exclude_superseded=False)]
    raise ConfigError(f"mteb has no task or benchmark '{name}'", did_you_mean(name, known))


def _model(given: str, overrides: Sequence[str], name: str) -> Any:
    from retrieval.encoders.dense import DENSE
    from retrieval.evaluation.mteb_models import EncoderModel

    if given.lstrip().startswith("{") or given.endswith((".yaml", ".yml")) or overrides:
        return _retriever_model(given, overrides, name)
    config = Path(given) / "config.json"
    if config.is_file() and _is_cross_encoder(config):
        from sentence_transformers import CrossEncoder

        return CrossEncoder(given)
    encoder = _encoder(given)
    if encoder.family.kind != DENSE.kind:
        kind = encoder.family.kind
        raise ConfigError(
            f"mteb compares one vector of each text, and {given} is a {kind} encoder",
            f"let its index search: '{{kind: {kind}, encoder: {given}, index: FOLDER/{PLACE}}}'",
        )
    return EncoderModel(encoder, name)


def _encoder(given: str) -> Any:
    """The encoder ``given``, or that of the dense index ``given``."""
    from retrieval.encoders.loading import open_encoder, reload_encoder
    from sleuth.artifacts import MANIFEST

    manifest = Path(given) / MANIFEST
    made = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    if isinstance(made.get("encoder"), dict):
        return reload_encoder(made["encoder"]["source"], made["encoder"]["settings"])
    if made.get("kind") == "bm25":
        raise ConfigError(
            f"{given} is an index of other passages than those of mteb's tasks",
            f"write '{{kind: bm25, index: FOLDER/{PLACE}}}', and an index is made of each task's",
        )
    return open_encoder(given)


def _is_cross_encoder(config: Path) -> bool:
    try:
        architectures = json.loads(config.read_text(encoding="utf-8")).get("architectures") or ()
    except ValueError:
        return False
    return any("ForSequenceClassification" in name for name in architectures)


def _retriever_model(given: str, overrides: Sequence[str], name: str) -> Any:
    from retrieval.evaluation.mteb_models import RetrieverModel
    from retrieval.progress import build_progress
    from sleuth.artifacts import fingerprint_of
    from sleuth.protocols import Retriever

    if PLACE not in "".join((given, *overrides)):
        raise ConfigError(f"{given} is one index for the corpora of all tasks", f"write {PLACE} in its folder")

    def open_on(chosen: str, corpus: Path) -> Retriever:
        texts = [override.replace(PLACE, chosen) for override in overrides]
        settings = retriever_settings(given.replace(PLACE, chosen), texts)
        return open_alone(
            made_from(settings, str(corpus), skip_bad_rows=True, existing=True), cached=False, progress=build_progress
        )

    return RetrieverModel(open_on, name, fingerprint_of([given, *overrides]))
