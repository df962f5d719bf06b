"""Multi-vector retrieval beside exact MaxSim and the library's own encoding, in one run.

    OMP_NUM_THREADS=1 python benchmarks/multivector.py --encoder FOLDER --corpus CORPUS --queries FILE [--rounds 5]

Contenders take turns within every round, so that a noisy machine is noisy for all; ratios to the first are taken within
a round, and the medians over rounds are printed, wall and CPU. One thread: figures are per core. Indexes are made in
the folder ``--work`` and kept there. Overlap is the share of the exact ten best that an index finds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from sentence_transformers import MultiVectorEncoder

from retrieval.encoders.family import Encoded
from retrieval.encoders.loading import load_encoder
from retrieval.multivector.retriever import build_multivector, open_multivector
from retrieval.passages import passage_text
from retrieval.store import PassageStore

K = 10
INDEXES: dict[str, dict[str, Any]] = {
    "flat": {},
    "residual, 2 bits": {"index_type": "residual"},
    "residual, 1 bit": {"index_type": "residual", "bits": 1},
    "muvera": {"index_type": "muvera"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--queries", type=Path, required=True, help="jsonl with a field text")
    parser.add_argument("--work", type=Path, help="folder for the indexes; a temporary one by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--count", type=int, default=64, help="queries and passages of a round")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(options, options.work or Path(folder))


def run(options: argparse.Namespace, work: Path) -> None:
    ours, theirs = load_encoder(options.encoder), MultiVectorEncoder(options.encoder)
    lines = options.queries.read_text(encoding="utf-8").splitlines()[: options.count]
    asked = ours.encode_texts([json.loads(line)["text"] for line in lines], "query")
    found = {}
    for name, made in INDEXES.items():
        path = work / name.replace(", ", "-").replace(" ", "-")
        if not path.exists():
            build_multivector(options.corpus, path, ours, **made)
        found[name] = open_multivector(path, ours).index
    exact = found["flat"].search(asked, K)[1]
    contest(
        f"searching {len(asked)} queries, {K} hits",
        {"maxsim of the library": library_maxsim(work / "flat", asked, theirs)}
        | {name: (lambda index=index: index.search(asked, K)) for name, index in found.items()},
        options.rounds,
        len(asked),
    )
    for name, index in found.items():
        rows = index.search(asked, K)[1]
        same = np.mean([len({*a} & {*b}) / len(a) for a, b in zip(rows.tolist(), exact.tolist(), strict=True)])
        print(f"  {name}: overlap {same:.3f}")
    store = PassageStore(work / "flat")
    texts = [passage_text(store[row]) for row in range(min(options.count, len(store)))]
    contest(
        f"encoding {len(texts)} passages, batches of 32",
        {
            "sentence-transformers": lambda: theirs.encode_document(texts, batch_size=32),
            "sleuth": lambda: ours.encode_texts(texts, "passage", 32),
        },
        options.rounds,
        len(texts),
    )


def library_maxsim(index: Path, asked: Encoded, model: MultiVectorEncoder) -> Callable[[], Any]:
    """All passages in memory, as the library compares them."""
    vectors, bounds = np.load(index / "token_vectors.npy"), np.load(index / "token_bounds.npy")
    passages = [torch.from_numpy(vectors[a:b]) for a, b in itertools.pairwise(bounds)]
    assert asked.mask is not None
    queries = [values[mask] for values, mask in zip(asked.values, asked.mask, strict=True)]
    return lambda: model.similarity(queries, passages).topk(K)


def contest(title: str, contenders: dict[str, Callable[[], Any]], rounds: int, count: int) -> None:
    """Print, for each, its rate and the median over rounds of its speed against the first."""
    wall: dict[str, list[float]] = {name: [] for name in contenders}
    cpu: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, work in contenders.items():
            started = time.perf_counter(), time.process_time()
            work()
            if turn:  # the first round warms caches
                wall[name].append(time.perf_counter() - started[0])
                cpu[name].append(time.process_time() - started[1])
    print(title)
    first = next(iter(contenders))
    for name in contenders:
        ratios = [
            statistics.median(a / b for a, b in zip(times[first], times[name], strict=True)) for times in (wall, cpu)
        ]
        rate = count / statistics.median(cpu[name])
        print(f"  {name}: {rate:.0f} a CPU second, {ratios[0]:.2f}x ({ratios[1]:.2f}x CPU) of {first}")


if __name__ == "__main__":
    main()
