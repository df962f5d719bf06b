"""Dense retrieval beside what it is made of: encoding, exact search, and batches through the protocol, in one run.

    SLEUTH_DATA=... OMP_NUM_THREADS=1 python benchmarks/dense.py --encoder FOLDER [--rounds 7]

Contenders take turns within every round, so that a noisy machine is noisy for all; ratios are taken within a round,
and the medians over rounds are printed, wall and CPU. One thread: figures are per core. The encoder is a
sentence-transformers folder; searched are random unit vectors of its dimension, as many as there are passages, since
exact search costs the same whatever they say.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from retrieval.dense.retriever import dense_retriever
from retrieval.dense.search import FAISS_QUERIES, FlatSearch
from retrieval.dense.vectors import StoredVectors
from retrieval.encoders.loading import load_encoder
from retrieval.encoders.retriever import EncoderRetriever
from retrieval.ingest import IngestReport, ingest
from retrieval.passages import passage_text
from retrieval.store import PassageStore, StoreWriter
from sleuth.types import Hit

K = 10
Contenders = dict[str, Callable[[], Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SLEUTH_DATA", ".")))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--passages", type=int, default=128, help="passages that are encoded in a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(options.data, Path(folder))
        run(options.encoder, store, questions(options.data), options.rounds, options.passages)


def run(name: str, store: PassageStore, queries: list[str], rounds: int, count: int) -> None:
    ours, theirs = load_encoder(name), SentenceTransformer(name)
    texts = [passage_text(store[row]) for row in range(0, len(store), max(1, len(store) // count))][:count]
    contest(
        f"encoding {len(texts)} passages, batches of 32",
        {"sleuth": lambda: ours.encode(texts, "passage"), "sentence-transformers": lambda: theirs.encode(texts)},
        rounds,
    )
    vectors = unit_vectors(len(store), ours.dimension)
    for batch in (1, 4, 32, 256):
        asked = unit_vectors(batch, ours.dimension)
        contest(
            f"exact search, top {K} of {len(store):,} x {ours.dimension}, {batch} queries", flat(vectors, asked), rounds
        )
    retriever = dense_retriever(ours, FlatSearch(StoredVectors(vectors)), store, "benchmark", "benchmark")
    for batch in (1, 32, len(queries)):
        contest(
            f"retrieval, {batch} queries, {K} hits each", whole(retriever, theirs, vectors, queries[:batch]), rounds
        )


def flat(vectors: np.ndarray[Any, Any], asked: np.ndarray[Any, Any]) -> Contenders:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    search, matrix = FlatSearch(StoredVectors(vectors)), torch.from_numpy(vectors)
    return {
        "sleuth": lambda: search.search(asked, K),
        "faiss.IndexFlatIP": lambda: index.search(asked, K),
        "matmul and topk": lambda: torch.topk(torch.from_numpy(asked) @ matrix.T, K),
    }


def whole(
    retriever: EncoderRetriever, model: SentenceTransformer, vectors: np.ndarray[Any, Any], queries: list[str]
) -> Contenders:
    """The protocol, and the same by hand: the faster raw search for the size, and the same passages read."""
    index, matrix, store = faiss.IndexFlatIP(vectors.shape[1]), torch.from_numpy(vectors), retriever.passages
    index.add(vectors)

    def by_hand() -> list[list[Hit]]:
        asked = model.encode(queries)
        if len(queries) <= FAISS_QUERIES:
            scores, rows = index.search(asked, K)
        else:
            found = torch.topk(torch.from_numpy(asked) @ matrix.T, K)
            scores, rows = found.values.numpy(), found.indices.numpy()
        return [
            [Hit(store[int(row)], float(score), rank) for rank, (score, row) in enumerate(zip(s, r, strict=True), 1)]
            for s, r in zip(scores, rows, strict=True)
        ]

    ours, theirs = retriever.search(queries, K), by_hand()
    assert [[h.passage.id for h in hits] for hits in ours] == [[h.passage.id for h in hits] for hits in theirs]
    return {"sleuth": lambda: retriever.search(queries, K), "encode, search, read": by_hand}


def contest(title: str, contenders: Contenders, rounds: int) -> None:
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for number in range(rounds + 1):  # the first warms up
        for name in order[number % len(order) :] + order[: number % len(order)]:
            repeats, started, worked = 0, time.perf_counter(), time.process_time()
            while not repeats or time.perf_counter() - started < 0.05:
                contenders[name]()
                repeats += 1
            if number:
                wall[name].append((time.perf_counter() - started) / repeats)
                cpu[name].append((time.process_time() - worked) / repeats)
    print(f"\n{title}")
    for name in order:
        ratios = [
            statistics.median(b / a for a, b in zip(seen["sleuth"], seen[name], strict=True)) for seen in (wall, cpu)
        ]
        beside = (
            "" if name == "sleuth" else f"   takes {ratios[0]:.2f} of sleuth's wall, {ratios[1]:.2f} of its CPU time"
        )
        milliseconds = [1000 * statistics.median(seen[name]) for seen in (wall, cpu)]
        print(f"  {name:<24} {milliseconds[0]:9.2f} ms wall {milliseconds[1]:9.2f} ms CPU{beside}")


def make_store(data: Path, folder: Path) -> PassageStore:
    """All passages of the three corpora, in one store."""
    merged = folder / "corpus.jsonl"
    merged.write_bytes(
        b"".join((data / name / "corpus.jsonl").read_bytes() for name in ("hotpotqa", "musique", "2wiki"))
    )
    with StoreWriter(folder) as store:
        for _ in ingest(merged, store, IngestReport(), skip_bad_rows=True):
            pass
    return PassageStore(folder)


def questions(data: Path) -> list[str]:
    with (data / "hotpotqa" / "queries.jsonl").open(encoding="utf-8") as file:
        return [str(json.loads(line)["text"]) for line in file]


def unit_vectors(count: int, dimension: int) -> np.ndarray[Any, Any]:
    vectors = np.random.default_rng(count).standard_normal((count, dimension), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
