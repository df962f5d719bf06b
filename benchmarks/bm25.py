"""BM25: recall of gold passages, and queries a second beside plain pyserini, in one run.

    SLEUTH_DATA=... python benchmarks/bm25.py [--repeats 25] [--k 10]

Plain pyserini is measured twice: reading each passage from Lucene's stored ``raw`` field, the way it is
documented, and from a dict of all passages in memory, the fastest way there is and one that does not scale.
Contenders take turns within every repeat, so that a noisy machine is noisy for all. No wrapper (cache,
timeout) is measured here.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from retrieval.bm25 import BM25Retriever, build_bm25
from retrieval.jvm import import_on_jvm
from sleuth.trajectories import read_jsonl

K1, B = 0.9, 0.4
WARM_UP = 5

Search = Callable[[Sequence[str], int], Sequence[Sequence[Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SLEUTH_DATA", ".")) / "hotpotqa")
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run(options.data, Path(folder), options.repeats, options.k, options.threads)


def run(data: Path, folder: Path, repeats: int, k: int, threads: int) -> None:
    started = time.perf_counter()
    built = build_bm25(data, folder / "ours", k1=K1, b=B, threads=threads)
    seconds = time.perf_counter() - started
    print(f"indexed {built.passages:,} passages in {seconds:.1f} s (start of Java and imports included)")
    ours = BM25Retriever(folder / "ours", threads=threads)
    queries = {row["_id"]: row["text"] for _, row in read_jsonl(data / "queries.jsonl")}
    for split in ("dev", "train"):
        report_recall(ours, queries, read_qrels(data / "qrels" / f"{split}.tsv"), split)
    plain = make_plain(data, folder / "plain", threads)
    report_speed(list(queries.values()), k, repeats, single_and_batch(ours, plain, threads))


def report_recall(ours: BM25Retriever, queries: dict[str, str], golds: dict[str, set[str]], split: str) -> None:
    found = ours.search([queries[query] for query in golds], 10)
    for k in (5, 10):
        shares = [
            len(gold & {hit.passage.id for hit in hits[:k]}) / len(gold)
            for gold, hits in zip(golds.values(), found, strict=True)
        ]
        print(f"recall@{k:<2} of gold passages, {split} ({len(shares)} queries): {statistics.mean(shares):.3f}")


def make_plain(data: Path, folder: Path, threads: int) -> tuple[Any, dict[str, dict[str, str]]]:
    """Plain pyserini's searcher over an index that stores raw rows, and the same rows in memory."""
    rows = [row for _, row in read_jsonl(data / "corpus.jsonl")]
    raw = [
        {"id": row["_id"], "contents": f"{row['title']} {row['text']}", "title": row["title"], "text": row["text"]}
        for row in rows
    ]
    arguments = ["-index", str(folder), "-storeRaw"]
    indexer = import_on_jvm("pyserini.index.lucene").LuceneIndexer(args=arguments, threads=threads)
    indexer.add_batch_raw([json.dumps(row) for row in raw])
    indexer.close()
    searcher = import_on_jvm("pyserini.search.lucene").LuceneSearcher(str(folder))
    searcher.set_bm25(K1, B)
    return searcher, {row["id"]: row for row in raw}


def single_and_batch(
    ours: BM25Retriever, plain: tuple[Any, dict[str, dict[str, str]]], threads: int
) -> dict[str, dict[str, Search]]:
    searcher, memory = plain

    def stored(hit: Any) -> tuple[Any, float]:
        return json.loads(hit.lucene_document.get("raw")), hit.score

    def remembered(hit: Any) -> tuple[Any, float]:
        return memory[hit.docid], hit.score

    def one_by_one(read: Callable[[Any], Any]) -> Search:
        return lambda queries, k: [[read(hit) for hit in searcher.search(query, k)] for query in queries]

    def at_once(read: Callable[[Any], Any]) -> Search:
        def search(queries: Sequence[str], k: int) -> list[list[Any]]:
            names = [str(number) for number in range(len(queries))]
            found = searcher.batch_search(list(queries), names, k, threads=threads)
            return [[read(hit) for hit in found[name]] for name in names]

        return search

    return {
        "single": {
            "sleuth": lambda queries, k: [ours.search([query], k)[0] for query in queries],
            "pyserini, stored": one_by_one(stored),
            "pyserini, in memory": one_by_one(remembered),
        },
        "batched": {
            "sleuth": ours.search,
            "pyserini, stored": at_once(stored),
            "pyserini, in memory": at_once(remembered),
        },
    }


def report_speed(queries: list[str], k: int, repeats: int, modes: dict[str, dict[str, Search]]) -> None:
    print(f"\n{len(queries)} queries, k={k}, {repeats} repeats after {WARM_UP} to warm up; medians over the repeats,")
    print("ratios are taken within a repeat: above 1 sleuth is the faster (wall) or the leaner (CPU)")
    for mode, contenders in modes.items():
        wall: dict[str, list[float]] = {name: [] for name in contenders}
        cpu: dict[str, list[float]] = {name: [] for name in contenders}
        for repeat in range(repeats + WARM_UP):
            order = list(contenders)
            for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
                started, worked = time.perf_counter(), time.process_time()
                found = contenders[name](queries, k)
                elapsed, used = time.perf_counter() - started, time.process_time() - worked
                assert len(found) == len(queries)
                assert len(found[0]) == k
                if repeat >= WARM_UP:
                    wall[name].append(elapsed)
                    cpu[name].append(used)
        for name in contenders:
            rate, spent = len(queries) / statistics.median(wall[name]), statistics.median(cpu[name]) / len(queries)
            ratios = [
                statistics.median(b / a for a, b in zip(seen["sleuth"], seen[name], strict=True))
                for seen in (wall, cpu)
            ]
            beside = "" if name == "sleuth" else f"   ratio {ratios[0]:.2f} wall, {ratios[1]:.2f} CPU"
            print(f"{mode:>8}  {name:<20} {rate:6.0f} queries/s  {1000 * spent:5.2f} CPU-ms a query{beside}")


def read_qrels(path: Path) -> dict[str, set[str]]:
    golds: dict[str, set[str]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            golds.setdefault(row["query-id"], set()).add(row["corpus-id"])
    return golds


if __name__ == "__main__":
    main()
