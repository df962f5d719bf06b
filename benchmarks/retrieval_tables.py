"""Real text: BM25, MiniLM as it comes and fine-tuned here, hybrids of them, and a cross-encoder trained here.

    SLEUTH_DATA=... python benchmarks/retrieval_tables.py --encoder FOLDER [--cache DIR] [--reranker] [--json FILE]

One run, 150 judged HotpotQA queries, two corpora (hotpotqa; hotpotqa + musique + 2wiki). What is trained is compared
by 3-fold cross-validation: every query is answered by a model that has seen the other 100, and MuSiQue's questions.
Fine-tuned is the query tower alone, so that passages are encoded once; their vectors lie in ``--cache``.
The reranker is trained twice: on sentences of the passages (inverse cloze task, no questions), then, fold by fold,
on the questions.
Differences come with 95 % intervals: Newcombe's for measures of 0 and 1, paired bootstrap (10,000 draws) elsewhere.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval.bm25 import BM25Retriever, build_bm25
from retrieval.combine.hybrid import HybridRetriever
from retrieval.combine.rerank import RerankRetriever
from retrieval.corpus import PassageRow, read_rows
from retrieval.dense.search import FlatSearch
from retrieval.dense.vectors import StoredVectors
from retrieval.encoders.encoder import Encoder, Vectors, separate_towers
from retrieval.encoders.family import Encoded
from retrieval.encoders.loading import load_encoder
from retrieval.evaluation.measures import PerQuery, differences, means, per_query
from retrieval.passages import content_key, passage_text
from retrieval.rerankers.scorer import CrossEncoderScorer
from retrieval.training.config import FrozenSettings, SourceSettings
from retrieval.training.frozen import Table
from retrieval.training.mining import mine
from retrieval.training.mining_config import FilterSettings
from retrieval.training.objective import AgainstTable
from retrieval.training.rerankers.config import RerankerSettings
from retrieval.training.rerankers.train import train_reranker
from retrieval.training.row import TrainingRow
from retrieval.training.rows import load_rows
from retrieval.training.trainer import freeze_passages, train
from sleuth.protocols import Retriever
from sleuth.sinks import ConsoleSink
from sleuth.types import Hit, Passage

NAMES = ("R@5", "R@10", "AllGold@5", "nDCG@10")
CORPORA = {"hotpotqa": ["hotpotqa"], "all": ["hotpotqa", "musique", "2wiki"]}
FOLDS = 3
RERANKER: dict[str, Any] = {"max_tokens": 128, "loss": "lambda", "batch_size": 6, "log_steps": 20}
DEPTH = 100


class InMemory:
    """Exact search over vectors in memory; ``encoders`` gives each query's encoder, by query text."""

    def __init__(self, passages: Sequence[Passage], table: Vectors, vectors: Mapping[str, Any], name: str) -> None:
        self._passages, self._vectors, self.fingerprint = passages, vectors, name
        self._search = FlatSearch(StoredVectors(table))

    def __len__(self) -> int:
        return len(self._passages)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        made = np.stack([self._vectors[query] for query in queries])
        answers = []
        for scores, places in zip(*(found.tolist() for found in self._search.search(made, k)), strict=True):
            hits = zip(places, scores, strict=True)
            answers.append([Hit(self._passages[p], score, rank) for rank, (p, score) in enumerate(hits, start=1)])
        return answers


class Remembered:
    """A scorer that asks no pair twice; each query has a model of its own fold."""

    fingerprint = "folds"

    def __init__(self, models: Mapping[str, CrossEncoderScorer]) -> None:
        self._models = models
        self._known: dict[tuple[str, str], float] = {}

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        for query, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
            new = [pair for pair in dict.fromkeys(group) if pair not in self._known]
            self._known |= dict(zip(new, self._models[query].score(new), strict=True)) if new else {}
        return [self._known[pair] for pair in pairs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SLEUTH_DATA", ".")))
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--cache", type=Path, default=Path("/tmp/retrieval_tables"))
    parser.add_argument("--learning-rate", type=float, default=5e-5)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--against", choices=("all", "batch"), default="all")
    parser.add_argument("--reranker", action="store_true")
    parser.add_argument("--reranker-start", type=Path, help="A reranker trained on sentences, instead of training one.")
    parser.add_argument("--sentences", type=int, default=2_500, help="Sentences that the reranker starts with.")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    encoder = load_encoder(options.encoder)
    rows = judged_rows(options.data)
    table, passages = encode_all(encoder, options.data, options.cache)
    folds = make_folds(rows)
    bm25 = {name: open_bm25(options.data, parts, options.cache / f"bm25-{name}") for name, parts in CORPORA.items()}
    rows = mine(rows, bm25["hotpotqa"], FilterSettings(negatives=10, last_rank=30, drop_answers=False))[0]
    more = load_rows([musique(options.data)])
    untuned = dict(zip((r.query for r in rows), encoder.encode([r.query for r in rows], "query"), strict=True))
    tuned = tune(encoder, rows, folds, more, passages, table, options)
    scorer = rerankers(rows, folds, more, bm25["all"], options) if options.reranker else None
    results = {}
    for name, parts in CORPORA.items():
        vectors, found = np.concatenate([table[p] for p in parts]), [x for p in parts for x in passages[p]]
        dense = InMemory(found, vectors, untuned, "minilm")
        better = InMemory(found, vectors, tuned, "tuned")
        results[name] = report(name, rows, systems(bm25[name], dense, better, scorer))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


def systems(bm25: Retriever, dense: Retriever, tuned: Retriever, scorer: Remembered | None) -> dict[str, Retriever]:
    hybrid = HybridRetriever([bm25, dense], rrf_k=10)
    found: dict[str, Retriever] = {
        "BM25 1.2/.75": bm25,
        "MiniLM": dense,
        "MiniLM tuned": tuned,
        "hybrid": hybrid,
        "hybrid tuned": HybridRetriever([bm25, tuned], rrf_k=10),
    }
    if scorer:
        reranked = RerankRetriever(hybrid, scorer, depth=50)
        found |= {"reranked": reranked, "hybrid + reranked": HybridRetriever([hybrid, reranked], rrf_k=10, depth=50)}
    return found


def judged_rows(data: Path) -> list[TrainingRow]:
    folder = str(data / "hotpotqa")
    return load_rows([SourceSettings(path=folder, split=split) for split in ("train", "dev")])


def musique(data: Path) -> SourceSettings:
    return SourceSettings(
        path=str(data / "musique/official/musique_ans_train_sample.jsonl"), corpus=str(data / "musique/corpus.jsonl")
    )


def make_folds(rows: Sequence[TrainingRow], seed: int = 0) -> list[set[str]]:
    """Query ids of each fold."""
    ids = [row.id for row in rows]
    random.Random(seed).shuffle(ids)
    return [set(ids[start::FOLDS]) for start in range(FOLDS)]


def open_bm25(data: Path, parts: Sequence[str], index: Path) -> BM25Retriever:
    if not index.exists():
        corpus = index.with_suffix(".jsonl")
        corpus.write_text("".join((data / part / "corpus.jsonl").read_text(encoding="utf-8") for part in parts))
        build_bm25(corpus, index, k1=1.2, b=0.75)
    return BM25Retriever(index, k1=1.2, b=0.75)


def encode_all(encoder: Encoder, data: Path, cache: Path) -> tuple[dict[str, Vectors], dict[str, list[Passage]]]:
    """Vectors and passages of each corpus; vectors are kept under the passage tower's fingerprint."""
    mark = encoder.tower_fingerprint("passage")[:12]
    table, passages = {}, {}
    for name in CORPORA["all"]:
        passages[name] = [row.passage for row in read_rows(data / name / "corpus.jsonl") if isinstance(row, PassageRow)]
        kept = cache / f"{name}-{mark}.npy"
        if not kept.exists():
            texts = [passage_text(p) for p in passages[name]]
            print(f"encoding {len(texts)} passages of {name}", flush=True)
            np.save(kept, encoder.encode(texts, "passage"))
        table[name] = np.load(kept)
    return table, passages


def tune(
    encoder: Encoder,
    rows: Sequence[TrainingRow],
    folds: Sequence[set[str]],
    more: Sequence[TrainingRow],
    passages: Mapping[str, Sequence[Passage]],
    table: Mapping[str, Vectors],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Each query's vector by the query tower that has not seen it."""
    settings = FrozenSettings(
        batch_size=25,
        hard_negatives=10,
        against=options.against,
        temperature=options.temperature,
        learning_rate=options.learning_rate,
        epochs=options.epochs,
        log_steps=8,
    )
    known, vectors = with_distractors(passages, table, encoder, more)
    tuned = {}
    for number, fold in enumerate(folds):
        student = separate_towers(load_encoder(options.encoder))
        freeze_passages(student)
        learned = [*(row for row in rows if row.id not in fold), *more]
        objective = AgainstTable(learned, Table(known, Encoded(torch.from_numpy(vectors))), settings, seed=number)
        outcome = train(student, objective, settings, options.cache / f"tune-{number}", seed=number, sink=ConsoleSink())
        print(f"fold {number}: {len(learned)} queries, {outcome.last_step} steps, {outcome.seconds:.0f} s")
        asked = [row.query for row in rows if row.id in fold]
        tuned |= dict(zip(asked, student.encode(asked, "query"), strict=True))
    return tuned


def with_distractors(
    passages: Mapping[str, Sequence[Passage]],
    table: Mapping[str, Vectors],
    encoder: Encoder,
    more: Sequence[TrainingRow],
) -> tuple[list[Passage], Vectors]:
    """The passages of hotpotqa and musique, and those of MuSiQue's questions that its corpus words otherwise."""
    known = [*passages["hotpotqa"], *passages["musique"]]
    keys = {content_key(p) for p in known}
    extra = {content_key(p): p for row in more for p in (*row.positives, *row.negatives) if content_key(p) not in keys}
    new = encoder.encode([passage_text(p) for p in extra.values()], "passage")
    return [*known, *extra.values()], np.concatenate([table["hotpotqa"], table["musique"], new])


def rerankers(
    rows: Sequence[TrainingRow],
    folds: Sequence[set[str]],
    more: Sequence[TrainingRow],
    bm25: Retriever,
    options: argparse.Namespace,
) -> Remembered:
    """A cross-encoder a fold, each going on from the one that learnt from sentences."""
    start = options.reranker_start or reranker_start(bm25, options)
    settings = RerankerSettings(
        backbone=str(start), hard_negatives=6, epochs=2, learning_rate=1e-4, warmup_steps=10, **RERANKER
    )
    models: dict[str, CrossEncoderScorer] = {}
    for number, fold in enumerate(folds):
        folder = options.cache / f"reranker-{number}"
        learned = [*(row for row in rows if row.id not in fold), *more]
        if not folder.exists():
            work = options.cache / f"reranker-work-{number}"
            train_reranker(learned, settings, folder, work, seed=number, sink=ConsoleSink())
        scorer = CrossEncoderScorer(folder)
        models |= {row.query: scorer for row in rows if row.id in fold}
    return Remembered(models)


def reranker_start(bm25: Retriever, options: argparse.Namespace) -> Path:
    """The encoder's weights with a new head, trained on sentences of all passages against what BM25 finds for them."""
    folder: Path = options.cache / "reranker-start"
    if not folder.exists():
        corpus = options.cache / "bm25-all.jsonl"
        sentences = load_rows([SourceSettings(path=str(corpus), layout="cloze", limit=options.sentences)])
        learned = mine(sentences, bm25, FilterSettings(negatives=8, last_rank=30, sampling="random"))[0]
        settings = RerankerSettings(
            backbone=options.encoder, hard_negatives=2, learning_rate=2e-4, warmup_steps=20, **RERANKER
        )
        train_reranker(learned, settings, folder, options.cache / "reranker-start-work", seed=0, sink=ConsoleSink())
    return folder


def report(name: str, rows: Sequence[TrainingRow], systems: Mapping[str, Retriever]) -> dict[str, Any]:
    """Print the table of one corpus with the differences that matter; the same as plain values."""
    qrels = {row.id: {p.id: 1 for p in row.positives} for row in rows}
    found: dict[str, PerQuery] = {}
    print(f"\n{name}, {len(rows)} queries")
    print(f"{'':18}" + "".join(f"{measure:>11}" for measure in NAMES))
    for system, retriever in systems.items():
        answers = retriever.search([row.query for row in rows], 50)
        run = {row.id: {h.passage.id: -float(h.rank) for h in hits} for row, hits in zip(rows, answers, strict=True)}
        found[system] = per_query(qrels, run, NAMES)
        print(f"{system:18}" + "".join(f"{value:11.3f}" for value in means(found[system]).values()), flush=True)
    compared = {}
    for a, b in PAIRS:
        if a in found and b in found:
            changes = differences(found[a], found[b])
            compared[f"{b} - {a}"] = {m: (c.difference, c.low, c.high) for m, c in changes.items()}
            shown = "  ".join(f"{m} {c.difference:+.3f} [{c.low:+.3f}, {c.high:+.3f}]" for m, c in changes.items())
            print(f"{b} - {a}: {shown}", flush=True)
    return {"means": {system: means(values) for system, values in found.items()}, "differences": compared}


PAIRS = (
    ("BM25 1.2/.75", "hybrid"),
    ("MiniLM", "hybrid"),
    ("MiniLM", "MiniLM tuned"),
    ("BM25 1.2/.75", "hybrid tuned"),
    ("MiniLM tuned", "hybrid tuned"),
    ("hybrid", "hybrid tuned"),
    ("hybrid", "reranked"),
    ("hybrid", "hybrid + reranked"),
)


if __name__ == "__main__":
    main()
