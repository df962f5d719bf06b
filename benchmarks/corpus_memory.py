"""Peak memory of indexing made-up passages: flat but for a few bytes a passage.

    python benchmarks/corpus_memory.py [--sizes 100000 1000000] [--folder DIR]

For every size a process of its own indexes a corpus as ``sleuth index`` does (Python and the Java machine
together), and another one writes the passage store alone (the Python part: reading, duplicate check, offsets).
``anonymous`` leaves out pages of mapped files, which the kernel takes back whenever it likes. The heap of the
Java machine is bounded by SLEUTH_JVM_HEAP, 1g by default. Needs Linux; 1,000,000 passages take about 2 GB on disk.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WORDS_A_PASSAGE = 80
VOCABULARY = 200_000
MIB = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to put corpus and index; a temporary folder by default")
    parser.add_argument("--child", nargs=3, metavar=("WORK", "CORPUS", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        measure(*options.child)
        return
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            corpus = Path(folder) / "corpus.jsonl"
            write_corpus(corpus, size)
            print(f"{size:,} passages, {corpus.stat().st_size / 1e6:,.0f} MB of jsonl", flush=True)
            for work in ("store", "index"):
                arguments = ["--child", work, str(corpus), str(Path(folder) / work)]
                subprocess.run([sys.executable, __file__, *arguments], check=True)


def write_corpus(path: Path, size: int) -> None:
    """Passages of words whose frequencies fall off as in language, and some new word in each."""
    chance = random.Random(0)
    words = [f"w{number:x}" for number in range(VOCABULARY)]
    cumulative: list[float] = []
    for rank in range(1, VOCABULARY + 1):
        cumulative.append((cumulative[-1] if cumulative else 0.0) + 1 / rank)
    with path.open("w", encoding="utf-8") as file:
        for number in range(size):
            text = " ".join(chance.choices(words, cum_weights=cumulative, k=WORDS_A_PASSAGE))
            row = {"_id": f"passage-{number}", "title": f"Title {number}", "text": f"{text} unique{number}"}
            file.write(json.dumps(row) + "\n")


def measure(work: str, corpus: str, out: str) -> None:
    from retrieval.bm25 import build_bm25
    from retrieval.ingest import IngestReport, ingest
    from retrieval.jvm import import_on_jvm, java_class
    from retrieval.store import StoreWriter

    if work == "index":  # before the clock starts
        import_on_jvm("pyserini.index.lucene")
        import_on_jvm("pyserini.search.lucene")
    before = memory()
    started = time.perf_counter()
    with peak_anonymous() as peak:
        if work == "index":
            count = build_bm25(corpus, out).passages
        else:
            with StoreWriter(out) as store:
                count = sum(len(batch) for batch in ingest(corpus, store, IngestReport()))
    seconds = time.perf_counter() - started
    after = memory()
    heap = f", Java heap {java_class('java.lang.Runtime').getRuntime().totalMemory() >> 20:,} MiB" * (work == "index")
    print(
        f"  {work}: {count / seconds:,.0f} passages/s; peak RSS {after['VmHWM'] / MIB:,.0f} MiB"
        f" ({before['VmRSS'] / MIB:,.0f} before), anonymous {peak[0] / MIB:,.0f} MiB"
        f" ({before['RssAnon'] / MIB:,.0f} before){heap}",
        flush=True,
    )


@contextmanager
def peak_anonymous() -> Iterator[list[int]]:
    """The largest RssAnon seen while the block runs, in KiB, looked at 20 times a second."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], memory()["RssAnon"])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def memory() -> dict[str, int]:
    """The kernel's figures on this process, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    pairs = (line.split() for line in lines if line.startswith(("VmHWM", "VmRSS", "RssAnon")))
    return {name.rstrip(":"): int(value) for name, value, _ in pairs}


if __name__ == "__main__":
    main()
