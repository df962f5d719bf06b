"""What the studies of retriever families share: encoders are trained once, retrievers measured, figures kept by query.

A study is a list of `Trained` (encoders and rerankers, by the settings of ``sleuth train-retriever``) and a list of
`Searched` (retrievers over them). Whatever is finished is read again from the study's folder, so that an interrupted
study goes on, and seeds may be added later. ``results.jsonl`` has one line for each retriever and seed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import yaml

from retrieval.config import IndexedSettings, RetrieverSettings
from retrieval.evaluation.evaluate import retrieve
from retrieval.evaluation.judgements import Qrels, read_qrels, read_queries
from retrieval.evaluation.measures import per_query
from retrieval.open import open_retriever
from retrieval.size import size_of
from sleuth.artifacts import MANIFEST
from sleuth.layout import RetrieverRunLayout
from sleuth.protocols import Retriever
from sleuth.runs import RunFolder
from sleuth.statistics import paired_difference
from sleuth.types import Question

ROOT = Path(__file__).parents[1]
Task = tuple[Sequence[Question], Qrels]
MEASURES = ("R@5", "nDCG@10")
STORE = ("passages.jsonl", "passages.offsets", "passages.images", "passages.ids.npy")
"""Files of the passages themselves, which every index has."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A training run: the YAML of ``sleuth train-retriever`` without ``out`` and ``seed``."""

    name: str
    settings: Callable[[Path], dict[str, Any]]
    """From the folder of a seed, in which encoder ``X`` is ``X/encoder``."""
    needs: Sequence[str] = ()
    """What is trained before it."""


@dataclass(frozen=True, slots=True)
class Searched:
    """A retriever: its settings from the folder of a seed. An index is made from ``corpus`` if they name one."""

    name: str
    settings: Callable[[Path], dict[str, Any]]
    needs: Sequence[str] = ()
    """What is trained for it."""
    task: Callable[[Path], Task] | None = None
    """None: the study's own."""


@dataclass(frozen=True, slots=True)
class Result:
    """One retriever on one seed. ``values``: every query's, by measure; ``bytes``: a passage, without its text."""

    name: str
    seed: int
    values: Mapping[str, Mapping[str, float]]
    bytes: float | None
    queries_a_second: float
    build_s: float | None
    extra: Mapping[str, float] = field(default_factory=dict)

    def mean(self, measure: str) -> float:
        return fmean(self.values[measure].values())


def mean_of(runs: Sequence[Result], measure: str, pooled: bool = False) -> float:
    """The mean of the means of ``runs``; ``pooled``: of all their queries, of which some have more than others."""
    if pooled:
        return fmean(value for run in runs for value in run.values[measure].values())
    return fmean(run.mean(measure) for run in runs)


def train(run: Trained, folder: Path, seed: int, threads: int = 1) -> float:
    """Train what is not trained yet, in a process of its own; returns the seconds that its training took."""
    out = folder / run.name
    config = folder / f"{run.name}.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**run.settings(folder), "out": str(out), "seed": seed, "threads": threads}
    config.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    words = [sys.executable, "-m", "cli.main", "train-retriever", str(config), *(["--resume"] if out.exists() else [])]
    with (folder / f"{run.name}.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(words, check=False, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{run.name} failed: see {log.name}")
    return seconds_of(out)


def seconds_of(out: Path) -> float:
    """Seconds of training of all rounds, as the run recorded them."""
    folder = RunFolder(out)
    rounds = range(1, 1 + len(RetrieverRunLayout(out).rounds()))
    return sum(float(folder.stage_info(f"train-{number}").get("seconds", 0.0)) for number in rounds)


def measure(
    searched: Searched, folder: Path, seed: int, queries: Sequence[Question], qrels: Qrels, depth: int = 10
) -> Result:
    settings = RetrieverSettings.model_validate(searched.settings(folder))
    build, began = None, time.perf_counter()
    missing = isinstance(settings, IndexedSettings) and not settings.index.exists()
    retriever = open_retriever(settings, cached=False, resilient=False)
    if missing:
        build = time.perf_counter() - began
    retrieve(retriever, queries[:8], depth)  # whatever is loaded at the first search
    began = time.perf_counter()
    run = retrieve(retriever, queries, depth).run
    speed = len(queries) / (time.perf_counter() - began)
    return Result(
        searched.name, seed, per_query(qrels, run, list(MEASURES)), bytes_of(settings, retriever), speed, build
    )


def bytes_of(settings: RetrieverSettings, retriever: Retriever) -> float | None:
    """Bytes a passage of the index, without the passages' own text; of all parts where there are several."""
    if settings.inside:
        parts = [bytes_of(part, retriever) for part in settings.inside]
        return None if None in parts else sum(part for part in parts if part is not None)
    if not isinstance(settings, IndexedSettings):
        return None
    files = [path for path in settings.index.rglob("*") if path.is_file() and path.name not in (*STORE, MANIFEST)]
    return sum(path.stat().st_size for path in files) / (size_of(retriever) or 1)


def study(
    out: Path,
    seeds: Sequence[int],
    trained: Sequence[Trained],
    searched: Sequence[Searched],
    task_of: Callable[[Path], Task],
    prepare: Callable[[Path, int], None] = lambda _folder, _seed: None,
    only: Sequence[str] = (),
    file: str = "results.jsonl",
) -> list[Result]:
    """All results of ``file``, those of earlier calls too. ``prepare`` makes what a seed's folder begins with."""
    found = read_results(out / file)
    known = {(result.name, result.seed) for result in found}
    for seed in seeds if searched else ():
        folder = out / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, seed)
        for one in searched:
            if (one.name, seed) in known or (only and one.name not in only):
                continue
            for name in one.needs:
                _train_all(name, trained, folder, seed)
            queries, qrels = (one.task or task_of)(folder)
            result = measure(one, folder, seed, queries, qrels)
            _keep(out / file, result)
            found.append(result)
            print(line_of(result), flush=True)
    return found


def _train_all(name: str, trained: Sequence[Trained], folder: Path, seed: int) -> None:
    run = next(run for run in trained if run.name == name)
    for needed in run.needs:
        _train_all(needed, trained, folder, seed)
    if not RunFolder(folder / name).stage_done("index"):
        train(run, folder, seed)


def _keep(path: Path, result: Result) -> None:
    values = {name: {query: round(value, 4) for query, value in of.items()} for name, of in result.values.items()}
    row = {"name": result.name, "seed": result.seed, "bytes": result.bytes, "build_s": result.build_s}
    row |= {"queries_a_second": result.queries_a_second, "extra": dict(result.extra), "values": values}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_results(path: Path) -> list[Result]:
    if not path.exists():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    keys = ("name", "seed", "values", "bytes", "queries_a_second", "build_s", "extra")
    return [Result(**{key: row[key] for key in keys}) for row in rows]


def line_of(result: Result) -> str:
    figures = "  ".join(f"{name} {result.mean(name):.3f}" for name in MEASURES)
    size = "" if result.bytes is None else f"  {result.bytes:,.0f} bytes a passage"
    build = "" if result.build_s is None else f"  built in {result.build_s:.0f} s"
    return f"seed {result.seed}  {result.name:24s}  {figures}{size}  {result.queries_a_second:,.0f} queries/s{build}"


def table(results: Sequence[Result], against: str, measure: str = "R@5", pooled: bool = False) -> str:
    """Markdown: means over seeds, their range, and the paired difference to ``against`` over all queries.

    ``pooled``: means over the queries of all seeds together, where a seed stands for a part of the queries.
    """
    names = list(dict.fromkeys(result.name for result in results))
    by = {name: {r.seed: r for r in results if r.name == name} for name in names}
    lines = [
        f"| retriever | seeds | {measure} | range | to {against} | nDCG@10 | bytes a passage | queries/s | build s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        runs = list(by[name].values())
        means = [run.mean(measure) for run in runs]
        sizes = [run.bytes for run in runs if run.bytes is not None]
        builds = [run.build_s for run in runs if run.build_s is not None]
        lines.append(
            f"| {name} | {len(runs)} | {mean_of(runs, measure, pooled):.3f} | {min(means):.3f} - {max(means):.3f} | "
            f"{_difference(by.get(against, {}), by[name], measure)} | {mean_of(runs, 'nDCG@10', pooled):.3f} | "
            f"{f'{fmean(sizes):,.0f}' if sizes else ''} | {np.median([r.queries_a_second for r in runs]):,.0f} | "
            f"{f'{fmean(builds):.0f}' if builds else ''} |"
        )
    return "\n".join(lines)


def _difference(base: Mapping[int, Result], other: Mapping[int, Result], measure: str) -> str:
    """Mean over the seeds both have, query by query; every seed's query counts by itself."""
    pairs = [
        (base[seed].values[measure][query], value)
        for seed in base.keys() & other.keys()
        for query, value in other[seed].values[measure].items()
    ]
    if not pairs or base is other:
        return ""
    found = paired_difference([a for a, _ in pairs], [b for _, b in pairs])
    return f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def beir_task(folder: Path, split: str) -> Task:
    """The judged queries of a BEIR folder's split."""
    qrels = read_qrels(folder / "qrels" / f"{split}.tsv")
    asked = {query.id: query for query in read_queries(folder / "queries.jsonl")}
    return [asked[query] for query in qrels], qrels
