"""A training run from rows to an index: mine, train, and with several rounds mine again with the trained encoder.

Every stage saves its result in the run folder and is not repeated when the run is resumed. Mining again with the
previous round's encoder follows ANCE (Xiong et al. 2021), but in whole rounds instead of asynchronously.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retrieval.combine.parts import reach
from retrieval.config import RetrieverSettings
from retrieval.dense.retriever import stored_vectors
from retrieval.encoders.config import EncoderChoice, preset
from retrieval.encoders.encoder import Encoder, separate_towers
from retrieval.encoders.family import DENSE
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.encoders.scratch import make_backbone
from retrieval.open import Progress, open_retriever
from retrieval.passages import passage_text
from retrieval.training.config import DevSettings, EncoderStart, RetrieverTraining
from retrieval.training.dev import judge_all, load_dev, means
from retrieval.training.frozen import Table, freeze
from retrieval.training.mining import mine
from retrieval.training.objective import AgainstTable, InBatch, Objective
from retrieval.training.rows import TrainingRow, load_rows, passages_of, read_passages, write_rows
from retrieval.training.trainer import Watch, add_adapter, freeze_passages, train
from sleuth.protocols import MetricSink
from sleuth.runs import RunFolder
from sleuth.settings import validate
from sleuth.statistics import paired_difference
from sleuth.trajectories import open_for_append, read_jsonl

log = logging.getLogger("sleuth.train_retriever")

DEV = "dev_queries.jsonl"

Counting = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
"""Shows progress under a title; yields a callback for (done, total)."""


@dataclass(slots=True)
class TrainingRun:
    """A run in progress. ``sink_of`` returns the sink for a round's metrics; the other two show progress."""

    settings: RetrieverTraining
    folder: RunFolder
    resume: bool
    sink_of: Callable[[Path], MetricSink]
    counting: Counting
    progress: Progress

    @property
    def out(self) -> Path:
        return self.folder.path

    def round_folder(self, number: int) -> Path:
        return self.out / f"round-{number}"


def run_training(run: TrainingRun) -> dict[str, Any]:
    """Run every stage that is not done; returns each stage's record."""
    stages: list[tuple[str, Callable[[], Mapping[str, Any]]]] = []
    for number in range(1, run.settings.rounds + 1):
        stages.append((f"mine-{number}", lambda n=number: _mine(run, n)))  # type: ignore[misc]
        stages.append((f"train-{number}", lambda n=number: _train(run, n)))  # type: ignore[misc]
    stages.append(("index", lambda: _index(run)))
    for name, work in stages:
        if not run.folder.stage_done(name):
            run.folder.mark_done(name, work())
    return {name: run.folder.stage_info(name) for name, _ in stages if run.folder.stage_info(name)}


def mine_to(run: TrainingRun, out: Path) -> Mapping[str, Any]:
    """The mining stage alone, written to ``out`` as Tevatron jsonl."""
    rows = load_rows(run.settings.data)
    return _mine_with(run, rows, _first_retriever(run), out)


def _mine(run: TrainingRun, number: int) -> Mapping[str, Any]:
    if run.settings.mining is None:
        return {}
    rows = load_rows(run.settings.data)
    retriever = _first_retriever(run) if number == 1 else _retriever_of_round(run, number - 1)
    return _mine_with(run, rows, retriever, run.round_folder(number) / "rows.jsonl")


def _mine_with(run: TrainingRun, rows: Sequence[TrainingRow], settings: RetrieverSettings, out: Path) -> dict[str, Any]:
    chosen = run.settings.mining
    assert chosen is not None
    retriever = open_retriever(settings, cached=False, progress=run.progress)
    with run.counting(f"mining negatives from {settings.index}") as on_progress:
        mined, report = mine(
            rows,
            retriever,
            chosen,
            batch_size=chosen.batch_size,
            keep_given=chosen.keep_given,
            on_progress=on_progress,
        )
    write_rows(mined, out)
    log.info("%s", report)
    return {"retriever": retriever.fingerprint, "hits": report.hits, "kept": report.kept, "golds": report.golds}


def _first_retriever(run: TrainingRun) -> RetrieverSettings:
    assert run.settings.mining is not None
    return run.settings.mining.retriever


def _retriever_of_round(run: TrainingRun, number: int) -> RetrieverSettings:
    assert run.settings.mining is not None
    corpus = run.settings.round_corpus or run.settings.mining.retriever.corpus
    folder = run.round_folder(number)
    return _trained(folder / "encoder", folder / "index", corpus)


def _trained(encoder: Path, index: Path, corpus: str | Path | None) -> RetrieverSettings:
    """The retriever of an encoder that was trained here, of its family's kind."""
    values = {"kind": DENSE.kind, "index": index, "encoder": str(encoder), "corpus": corpus}
    return validate(RetrieverSettings, values, "the retriever of a trained encoder")


def _rows_of_round(run: TrainingRun, number: int) -> list[TrainingRow]:
    mined = run.round_folder(number) / "rows.jsonl"
    if not mined.exists():
        return load_rows(run.settings.data)
    source = run.settings.data[0].model_copy(
        update={"path": str(mined), "layout": "tevatron", "limit": None, "corpus": None}
    )
    return load_rows([source])


def _train(run: TrainingRun, number: int) -> Mapping[str, Any]:
    folder = run.round_folder(number)
    rows = _rows_of_round(run, number)
    sink = run.sink_of(folder)
    if run.settings.kind == "reranker":
        from retrieval.training.cross_encoder import train_reranker

        assert run.settings.reranker is not None
        train_reranker(
            rows,
            run.settings.reranker,
            run.out / "reranker",
            folder / "checkpoints",
            seed=run.settings.seed,
            sink=sink,
            resume=run.resume,
        )
        sink.close()
        return {"queries": len(rows)}
    encoder = _start(run, number, rows)
    objective, watch = _prepare(run, encoder, rows, folder / DEV)
    outcome = train(
        encoder,
        objective,
        run.settings.training,
        folder / "checkpoints",
        seed=run.settings.seed,
        sink=sink,
        watch=watch,
        resume=run.resume,
    )
    sink.close()
    last = number == run.settings.rounds
    encoder.save(run.out / "encoder" if last else folder / "encoder", overwrite=True)
    if last:
        log.info("the encoder is in %s", run.out / "encoder")
    return {
        "queries": len(rows),
        "steps": outcome.last_step,
        "best_step": outcome.best_step,
        "best": outcome.best,
        "seconds": round(outcome.seconds, 1),
        **_gain(folder / DEV, run.settings.evaluation, outcome.best_step),
    }


def _start(run: TrainingRun, number: int, rows: Sequence[TrainingRow]) -> Encoder:
    """The encoder that a round starts from, ready to be trained."""
    settings = run.settings
    assert settings.encoder is not None
    if number > 1:
        encoder = load_encoder(run.round_folder(number - 1) / "encoder")
    else:
        encoder = open_start(settings.encoder, run.out / "backbone", rows, settings.seed)
    if settings.training.train == "query":
        encoder = separate_towers(encoder)
        freeze_passages(encoder)
    elif settings.training.lora is not None:
        add_adapter(encoder, settings.training.lora)
    return encoder


def open_start(start: EncoderStart, backbone: Path, rows: Sequence[TrainingRow], seed: int) -> Encoder:
    """An untrained encoder as ``start`` describes it; a scratch backbone is made in the folder ``backbone``."""
    name = start.backbone
    if start.scratch is not None:
        assert start.scratch_corpus is not None
        if not backbone.exists():
            texts = [row.query for row in rows] + _corpus_texts(start.scratch_corpus)
            make_backbone(backbone, texts, start.scratch, seed=seed)
        name = str(backbone)
    assert name is not None
    if start.preset is not None:
        return new_encoder(preset(start.preset, name, **start.settings))
    return load_encoder(validate(EncoderChoice, {"backbone": name, **start.settings}, "encoder"))


def _prepare(
    run: TrainingRun, encoder: Encoder, rows: Sequence[TrainingRow], record: Path
) -> tuple[Objective, Watch | None]:
    """The objective and how it is evaluated; frozen passages are encoded once for both.

    The metrics of every query go to ``record``, one row per evaluation.
    """
    training, dev = run.settings.training, run.settings.evaluation
    devset = load_dev(dev, run.settings.seed, passages_of(rows)) if dev else None
    objective: Objective
    table = None
    if training.train == "query":
        needed = [*passages_of(rows), *(devset.passages if devset else [])]
        known = Table(*stored_vectors(training.index, encoder)) if training.index else None
        with run.counting("encoding frozen passages") as on_progress:
            frozen = freeze(encoder, needed, known, on_progress)
        objective = AgainstTable(rows, frozen, training, run.settings.seed)
        table = frozen.select(devset.passages) if devset else None
    else:
        objective = InBatch(rows, training, run.settings.seed)
    if dev is None or devset is None:
        return objective, None

    def evaluate(current: Encoder, step: int) -> dict[str, float]:
        with run.counting(f"dev passages, step {step}") as on_progress:
            values = devset.per_query(current, dev.k, table, on_progress=on_progress)
        with open_for_append(record) as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        return means(values)

    return objective, Watch(evaluate, dev.metric, dev.every, dev.patience)


def _gain(record: Path, dev: DevSettings | None, best_step: int) -> dict[str, Any]:
    """The improvement of the chosen step over the untrained start, with its interval over dev queries."""
    if dev is None:
        return {}
    by_step = {row["step"]: row for _, row in read_jsonl(record)}
    gain = paired_difference(by_step[0][dev.metric], by_step[best_step][dev.metric])
    start = means({dev.metric: by_step[0][dev.metric]})[dev.metric]
    return {"start": start, "gain": gain.difference, "gain_low": gain.low, "gain_high": gain.high}


def _corpus_texts(corpus: str) -> list[str]:
    return [passage_text(p) for p in read_passages(corpus)]


def _index(run: TrainingRun) -> Mapping[str, Any]:
    """Encode the corpus into an index, and evaluate it on judged queries."""
    chosen = run.settings.index
    if chosen is None:
        return {}
    asked = _trained(run.out / "encoder", chosen.path, chosen.corpus)
    retriever = open_retriever(asked, cached=False, resilient=False, progress=run.progress)
    if chosen.evaluate is None:
        return {}
    dev = chosen.evaluate
    devset = load_dev(dev, run.settings.seed)
    found = retriever.search([row.query for row in devset.rows], reach(retriever, max(dev.k, 10)))
    values = judge_all(devset.rows, [[hit.passage.id for hit in hits] for hits in found], dev.k)
    return {"queries": len(devset.rows), "k": dev.k, **means(values)}
