"""A training run from rows to an index: mine, train, and with several rounds mine again with the trained encoder.

Every stage saves its result in the run folder and is not repeated when the run is resumed. Mining again with the
previous round's encoder follows ANCE (Xiong et al. 2021), but in whole rounds instead of asynchronously.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hub.randomness import seeded
from retrieval.combine.parts import reach
from retrieval.config import Progress, RetrieverSettings
from retrieval.encoders.config import EncoderChoice, EncoderKind, ScratchSettings, family_of, preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.loading import new_encoder, open_trainable_encoder
from retrieval.encoders.page_config import PageScratchSettings
from retrieval.encoders.scratch import make_backbone
from retrieval.open import open_retriever
from retrieval.passages import passage_text
from retrieval.training.config import DevSettings, RetrieverTraining, SourceSettings
from retrieval.training.dev import judge_all, load_dev, means
from retrieval.training.instructions import check_instructions, say_unread, search_each
from retrieval.training.mining import mine
from retrieval.training.objective import EncoderObjective
from retrieval.training.row import TrainingRow, passages_of
from retrieval.training.rows import load_rows, read_passages, write_rows
from retrieval.training.sampling import mixture_of
from retrieval.training.start import Counting, Material, start
from retrieval.training.start_config import EncoderStart
from retrieval.training.teacher import with_scores
from retrieval.training.teachers import have_labelled, labelled_rows, teachers_of_round
from retrieval.training.trainer import Watch, merge_adapters, train
from sleuth.artifacts import add_to_manifest
from sleuth.errors import ConfigError
from sleuth.layout import RetrieverRunLayout, RoundLayout
from sleuth.memory import peak_mib
from sleuth.protocols import MetricSink
from sleuth.runs import RunFolder
from sleuth.settings import validate
from sleuth.statistics import paired_difference
from sleuth.trajectories import open_for_append, read_jsonl
from sleuth.types import Passage

log = logging.getLogger("sleuth.train_retriever")


@dataclass(slots=True)
class TrainingRun:
    """A run in progress. ``sink_of`` returns the sink for a round's metrics; the other two show progress."""

    settings: RetrieverTraining
    folder: RunFolder
    resume: bool
    sink_of: Callable[[RoundLayout], MetricSink]
    counting: Counting
    progress: Progress

    @property
    def layout(self) -> RetrieverRunLayout:
        return RetrieverRunLayout(self.folder.path)


def run_training(run: TrainingRun) -> dict[str, Any]:
    """Run every stage that is not done; returns each stage's record."""
    stages: list[tuple[str, Callable[[], Mapping[str, Any]]]] = []
    for number in range(1, run.settings.last_round + 1):
        joining = teachers_of_round(run.settings, number)
        stages += [(f"label-{teacher}", lambda t=teacher: _label(run, t)) for teacher in joining]  # type: ignore[misc]
        stages.append((f"mine-{number}", lambda n=number: _mine(run, n)))  # type: ignore[misc]
        stages.append((f"train-{number}", lambda n=number: _train(run, n)))  # type: ignore[misc]
    stages.append(("index", lambda: index_trained(run)))
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
    if number == 1:
        _check_readable(run, rows)
    retriever = _first_retriever(run) if number == 1 else _retriever_of_round(run, number - 1)
    return _mine_with(run, rows, retriever, run.layout.round(number).rows)


def _check_readable(run: TrainingRun, rows: Sequence[TrainingRow]) -> None:
    """Refuse instructions that the model does not read before hours of mining, not after them."""
    if not any(row.instruction for row in rows):
        return
    if run.settings.kind == "encoder":
        check_instructions(rows, _encoder_of_round(run, 1, rows))
        return
    from retrieval.training.rerankers import model

    assert run.settings.reranker is not None
    reranker = model.new_reranker(run.settings.reranker, seed=run.settings.seed)
    model.check_instructions(rows, reranker, run.settings.reranker.backbone)


def _mine_with(run: TrainingRun, rows: Sequence[TrainingRow], settings: RetrieverSettings, out: Path) -> dict[str, Any]:
    chosen = run.settings.mining
    assert chosen is not None
    retriever = open_retriever(settings, cached=False, resilient=not settings.at_hand, progress=run.progress)
    say_unread(rows, retriever, settings.name)
    with run.counting(f"mining negatives from {settings.name}") as on_progress:
        mined, report = mine(
            rows,
            retriever,
            chosen,
            batch_size=chosen.batch_size,
            keep_given=chosen.keep_given,
            on_progress=on_progress,
        )
    log.info("%s", report)
    found = {"retriever": retriever.fingerprint, "hits": report.hits, "kept": report.kept, "golds": report.golds}
    if chosen.teacher is not None:
        mined, of_teacher = _taught(run, mined, chosen.teacher)
        found |= of_teacher
    write_rows(mined, out)
    return found


def _taught(
    run: TrainingRun, rows: Sequence[TrainingRow], settings: RetrieverSettings
) -> tuple[list[TrainingRow], dict[str, Any]]:
    """The rows with the teacher's scores, and what is recorded of it."""
    chosen = run.settings.mining
    assert chosen is not None
    teacher = open_retriever(settings, cached=False, resilient=False, progress=run.progress)
    say_unread(rows, teacher, settings.name)
    with run.counting(f"scores of {settings.name}") as on_progress:
        taught, report = with_scores(
            rows, teacher, depth=chosen.teacher_depth, batch_size=chosen.batch_size, on_progress=on_progress
        )
    log.info("%s", report)
    return taught, {"teacher": teacher.fingerprint, "scored": report.scored, "unscored": report.unscored}


def _first_retriever(run: TrainingRun) -> RetrieverSettings:
    assert run.settings.mining is not None
    return run.settings.mining.retriever


def _retriever_of_round(run: TrainingRun, number: int) -> RetrieverSettings:
    assert run.settings.mining is not None
    trained = run.layout.round(number)
    return _trained(trained.encoder, trained.index, run.settings.mining_corpus)


def _trained(encoder: Path, index: Path, corpus: str | Path | None) -> RetrieverSettings:
    """The retriever of an encoder that was trained here; its kind is that of the encoder's family."""
    values = {"kind": family_of(str(encoder)), "index": index, "encoder": str(encoder), "corpus": corpus}
    return validate(RetrieverSettings, values, "the retriever of a trained encoder")


def _label(run: TrainingRun, teacher: int) -> Mapping[str, Any]:
    return have_labelled(run.settings, teacher, run.layout, run.progress, run.counting)


def _rows_of_round(run: TrainingRun, number: int) -> list[TrainingRow]:
    if run.settings.augmentation:
        return labelled_rows(run.settings, number, run.layout, lambda t: run.folder.stage_info(f"label-{t}"))
    mined = run.layout.round(number).rows
    if not mined.exists():
        return load_rows(run.settings.data)
    found = load_rows([SourceSettings(path=str(mined), layout="tevatron")])  # they carry what their sources were given
    return _with_pictures(run, found)


def _with_pictures(run: TrainingRun, rows: list[TrainingRow]) -> list[TrainingRow]:
    """Mined rows name their pictures only: the bytes are where the rows are from, and in the corpus mined from."""
    missing = {p.image.sha256 for p in passages_of(rows) if p.image and p.image.content is None}
    if not missing:
        return rows
    corpus = run.settings.mining_corpus
    there = itertools.chain(passages_of(load_rows(run.settings.data)), read_passages(corpus) if corpus else ())
    known = {p.image.sha256: p.image for p in there if p.image and p.image.sha256 in missing}

    def seen(passages: Sequence[Passage]) -> tuple[Passage, ...]:
        return tuple(replace(p, image=known.get(p.image.sha256, p.image)) if p.image else p for p in passages)

    return [replace(row, positives=seen(row.positives), negatives=seen(row.negatives)) for row in rows]


def _train(run: TrainingRun, number: int) -> Mapping[str, Any]:
    layout = run.layout.round(number)
    rows = _rows_of_round(run, number)
    sink = run.sink_of(layout)
    if run.settings.kind == "reranker":
        return _train_reranker(run, rows, layout, sink)
    encoder, objective, watch = _prepare(run, _encoder_of_round(run, number, rows), rows, layout.dev)
    outcome = train(
        encoder,
        objective,
        run.settings.training,
        layout.checkpoints,
        seed=run.settings.seed,
        sink=sink,
        watch=watch,
        resume=run.resume,
    )
    sink.close()
    last = number == run.settings.last_round
    if run.settings.merge_adapter or encoder.settings.attention == "bidirectional":
        merge_adapters(encoder)  # an adapter's folder names its base model, which does not say how it attends
    place, made_of = run.layout.encoder if last else layout.encoder, material_of(rows, run.settings)
    encoder.save(place, overwrite=True)
    add_to_manifest(place, {"trained": {**made_of, "step": outcome.best_step}})
    if last:
        log.info("the encoder is in %s", run.layout.encoder)
    return {
        **made_of,
        "steps": outcome.last_step,
        "best_step": outcome.best_step,
        "best": outcome.best,
        "seconds": round(outcome.seconds, 1),
        "peak_mib": round(peak_mib()),
        **_gain(layout.dev, run.settings.evaluation, outcome.best_step),
    }


def material_of(
    rows: Sequence[TrainingRow], settings: RetrieverTraining, learnt: Sequence[TrainingRow] | None = None
) -> dict[str, Any]:
    """How many rows of each source are learnt from and how many left out, its path and its weight in the mixture.

    ``learnt`` None: all of ``rows``. Weight None: as its rows come. Sources are named as in the mixture: several by
    their number. Of the rows of `AugmentationSettings` no path is known.
    """
    data, learnt = settings.data, rows if learnt is None else learnt
    every, counts = (Counter(map(mixture_of, some)) for some in (rows, learnt))
    weights = {mixture_of(row): row.share for row in rows}
    paths = {str(number): {"path": one.path} for number, one in enumerate(data)}
    alone = {"path": data[0].path} if len(data) == 1 and settings.augmentation is None else {}
    sources: dict[str, dict[str, Any]] = {
        name: {
            "rows": counts[name],
            **_left_out(count - counts[name]),
            "weight": weights[name],
            **(paths.get(name, {}) if len(data) > 1 else alone),
        }
        for name, count in every.items()
    }
    return {"queries": len(learnt), **_left_out(len(rows) - len(learnt)), "sources": sources}


def _left_out(count: int) -> dict[str, int]:
    return {"left_out": count} if count else {}


def _train_reranker(
    run: TrainingRun, rows: Sequence[TrainingRow], layout: RoundLayout, sink: MetricSink
) -> Mapping[str, Any]:
    from retrieval.training.rerankers.lists import usable
    from retrieval.training.rerankers.train import Watched, train_reranker

    assert run.settings.reranker is not None
    dev = run.settings.evaluation
    figures = train_reranker(
        rows,
        run.settings.reranker,
        run.layout.reranker,
        layout.checkpoints,
        seed=run.settings.seed,
        sink=sink,
        watched=None if dev is None else Watched(dev, layout.dev, run.progress, run.counting),
        resume=run.resume,
    )
    sink.close()
    log.info("the reranker is in %s", run.layout.reranker)
    made_of = material_of(rows, run.settings, usable(rows, run.settings.reranker.loss))
    add_to_manifest(run.layout.reranker, {"trained": {**made_of, "step": figures["best_step"]}})
    return made_of | figures | {"peak_mib": round(peak_mib())}


def _encoder_of_round(run: TrainingRun, number: int, rows: Sequence[TrainingRow]) -> Encoder:
    """The encoder that a round starts from. Weights that its backbone's folder lacks are drawn from the run's seed."""
    with seeded(run.settings.seed):
        if number > 1:
            return open_trainable_encoder(run.layout.round(number - 1).encoder)
        assert run.settings.encoder is not None
        return open_start(run.settings.encoder, run.layout.backbone, rows, run.settings.seed)


def open_start(start: EncoderStart, backbone: Path, rows: Sequence[TrainingRow], seed: int) -> Encoder:
    """An untrained encoder as ``start`` describes it; a scratch backbone is made in the folder ``backbone``."""
    name = start.backbone
    if start.scratch is not None:
        if not backbone.exists():
            make_scratch(start, backbone, rows, seed)
        name = str(backbone)
    assert name is not None
    if start.preset is not None:
        return new_encoder(preset(start.preset, name, **start.settings), seed=seed)
    return open_trainable_encoder(EncoderKind.of(backbone=name, **start.settings))


def make_scratch(start: EncoderStart, backbone: Path, rows: Sequence[TrainingRow], seed: int) -> None:
    """Make the random backbone that ``start`` describes; queries of ``rows`` and its corpus give the vocabulary."""
    assert start.scratch_corpus is not None
    texts = [row.query for row in rows] + _corpus_texts(start.scratch_corpus)
    make_backbone(backbone, texts, _scratch(start), seed=seed)


def _scratch(start: EncoderStart) -> ScratchSettings | PageScratchSettings:
    """The settings of a random backbone, with the head that the encoder weighs words by, if it does."""
    assert start.scratch is not None
    if isinstance(start.scratch, PageScratchSettings):
        return start.scratch
    chosen = start.choice
    needed = isinstance(chosen, EncoderChoice) and chosen.needs_masked_lm
    if needed and start.scratch.family != "bert":
        raise ConfigError(f"a {start.scratch.family} from scratch has no masked-LM head", "set scratch.family to bert")
    return start.scratch.model_copy(
        update={"masked_lm": needed if start.scratch.masked_lm is None else start.scratch.masked_lm}
    )


def _prepare(
    run: TrainingRun, encoder: Encoder, rows: Sequence[TrainingRow], record: Path
) -> tuple[Encoder, EncoderObjective, Watch[Encoder] | None]:
    """What is trained, what is minimised and how it is watched; every query's figures go to ``record``."""
    dev, seed = run.settings.evaluation, run.settings.seed
    devset = load_dev(dev, seed, passages_of(rows)) if dev else None
    watched = devset.passages if devset else []
    check_instructions(devset.rows if devset else (), encoder)
    encoder, objective = start(run.settings.training, Material(encoder, rows, watched, seed, run.counting))
    if dev is None or devset is None:
        return encoder, objective, None
    table = objective.table_of(watched)

    def evaluate(current: Encoder, step: int) -> dict[str, float]:
        with run.counting(f"dev passages, step {step}") as on_progress:
            values = devset.per_query(current, dev.k, table, on_progress=on_progress)
        with open_for_append(record) as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        return means(values)

    return encoder, objective, Watch(evaluate, dev.metric, dev.every, dev.patience)


def _gain(record: Path, dev: DevSettings | None, best_step: int) -> dict[str, Any]:
    """The improvement of the chosen step over the untrained start, with its interval over dev queries."""
    if dev is None:
        return {}
    by_step = {row["step"]: row for _, row in read_jsonl(record)}
    gain = paired_difference(by_step[0][dev.metric], by_step[best_step][dev.metric])
    start = means({dev.metric: by_step[0][dev.metric]})[dev.metric]
    return {
        "start": start,
        "gain": gain.difference,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "gain_method": gain.method,
    }


def _corpus_texts(corpus: str) -> list[str]:
    return [passage_text(p) for p in read_passages(corpus)]


def index_trained(run: TrainingRun) -> Mapping[str, Any]:
    """Encode the corpus into an index, and evaluate it on judged queries."""
    chosen = run.settings.index
    if chosen is None:
        return {}
    asked = _trained(run.layout.encoder, chosen.path, chosen.corpus)
    retriever = open_retriever(asked, cached=False, resilient=False, progress=run.progress)
    if chosen.evaluate is None:
        return {}
    dev = chosen.evaluate
    devset = load_dev(dev, run.settings.seed)
    say_unread(devset.rows, retriever, asked.name)
    found = search_each(retriever, devset.rows, reach(retriever, max(dev.k, 10)))
    values = judge_all(devset.rows, [[hit.passage.id for hit in hits] for hits in found], dev.k)
    return {"queries": len(devset.rows), "k": dev.k, **means(values)}
