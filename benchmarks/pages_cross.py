"""What finds what: text, page and both, by the encoders that `pages_world.py` has trained.

    python benchmarks/pages_cross.py [--seeds 0] [--out runs/pages_world] [--encoder dse] [--table]

On the same pool of 1,000: a question or a page asks, pages, texts or pages with their text layer answer; the 430
held-out pages are asked for. A page that asks is rendered otherwise than those that answer: wider, so that its lines
break elsewhere, or jittered in a font that spaces itself, which these encoders have never seen. Chance is .005 at five.
Each row is appended to ``cross.jsonl`` of the folder; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from pages_world import ALIGNED, pages_of, task_of

from retrieval.encoders.config import Reads
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.inputs import Input, input_of
from retrieval.encoders.loading import load_encoder
from retrieval.pages.config import PageSettings
from retrieval.pages.write import write_pages
from retrieval.training.rows import read_passages
from sleuth.layout import RetrieverRunLayout
from sleuth.types import Passage

WIDE = {**ALIGNED, "width": 216}
WAYS: Sequence[tuple[str, Reads]] = (
    ("question", "image"),
    ("question", "text"),
    ("question", "both"),
    ("aligned page", "text"),
    ("wide page", "image"),
    ("jittered page", "image"),
)


def recall(
    encoder: Encoder, asked: Sequence[Input], golds: Sequence[str], pool: Sequence[Passage], reads: Reads
) -> float:
    """Recall@5 of ``golds``, one for each of ``asked``, in ``pool``."""
    queries = encoder.encode_inputs(asked, "query", 64)
    passages = encoder.encode_inputs([input_of(p, reads) for p in pool], "passage", 64)
    ids = [p.id for p in pool]
    found = 0
    for start in range(0, len(golds), 16):  # scores of multi-vector encoders are large on their way
        best = encoder.family.scores(queries[start : start + 16], passages).topk(5, dim=1).indices
        found += sum(gold in [ids[n] for n in row] for gold, row in zip(golds[start:], best.tolist(), strict=False))
    return found / len(golds)


def measure(folder: Path, name: str, known: set[tuple[str, str]]) -> Iterator[dict[str, object]]:
    """The rows that are not ``known`` yet, one by one."""
    wide = folder / "pages" / "wide-pool"
    if not wide.exists():
        write_pages(folder / "texts" / "pool", wide, PageSettings(**WIDE))
    encoder = load_encoder(RetrieverRunLayout(folder / name).encoder)
    pools = {"aligned": pages_of(folder, "aligned", "pool"), "jittered": pages_of(folder, "jittered", "pool")}
    pages = {rendering: list(read_passages(path)) for rendering, path in {**pools, "wide": wide}.items()}
    questions, qrels = task_of(folder)
    golds = [next(iter(qrels[question.id])) for question in questions]
    for asks, reads in WAYS:
        if (asks, reads) in known:
            continue
        rendering = asks.split()[0]
        by_id = {p.id: p for p in pages.get(rendering, [])}
        given = [question.text for question in questions]
        asked: list[Input] = [*given] if asks == "question" else [input_of(by_id[gold], "image") for gold in golds]
        value = recall(encoder, asked, golds, pages["aligned"], reads)
        yield {"encoder": name, "asks": asks, "answers": reads, "recall": round(value, 4), "n": len(golds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("runs/pages_world"))
    parser.add_argument("--encoder", default="dse")
    parser.add_argument("--table", action="store_true", help="Print what is known, measure nothing.")
    options = parser.parse_args()
    path = options.out / "cross.jsonl"
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    for seed in [] if options.table else options.seeds:
        mine = [row for row in found if (row["seed"], row["encoder"]) == (seed, options.encoder)]
        known = {(row["asks"], row["answers"]) for row in mine}
        for row in measure(options.out / f"seed-{seed}", options.encoder, known):
            found.append({"seed": seed, **row})
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(found[-1]) + "\n")
            print(found[-1], flush=True)
    print("| encoder | seed | asks | answers | recall@5 |\n| --- | --- | --- | --- | --- |")
    for row in found:
        print(f"| {row['encoder']} | {row['seed']} | {row['asks']} | {row['answers']} | {row['recall']:.3f} |")


if __name__ == "__main__":
    main()
