"""Pages of public reports: what finds the page that a question is about, in five folds by document.

    SLEUTH_DATA=... python benchmarks/pages_docs.py --start ENCODER [--folds 0 1 2 3 4] [--steps 60]
                                                    [--out runs/pages_docs] [--only NAME …] [--table]

The 221 questions of docs_pages, train and dev, are parted by document, so that no fold asks about a document that its
encoder has learned from; all 504 pages are searched in each. ``--start``: an encoder that reads pages, such as the one
that `pages_world.py` trains from nothing, as it comes and tuned on the other folds with negatives mined by BM25 over
the text layer. Captions, which name their page, are a table of their own. Figures are means over the questions of all
folds together, with intervals against BM25: fold 0 has 2 questions and 43 captions, the others 29 to 34 and 10
to 15. Ranges are those of the folds' own means. An interrupted study goes on.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from family_study import Searched, Task, Trained, beir_task, study, table

from sleuth.layout import RetrieverRunLayout
from sleuth.seeding import derive_seed
from sleuth.trajectories import read_jsonl

FOLDS = 5
TASKS = ("questions", "captions")
BM25 = "bm25 on the text layer"


def source() -> Path:
    if "SLEUTH_DATA" not in os.environ:
        sys.exit("set SLEUTH_DATA to the folder that holds docs_pages/")
    return Path(os.environ["SLEUTH_DATA"]) / "docs_pages"


def folds() -> list[list[dict[str, Any]]]:
    """The questions with their gold pages, by fold: documents are shuffled and go to the smallest fold each."""
    rows = [row for split in ("train", "dev") for _, row in read_jsonl(source() / "qa" / f"{split}.jsonl")]
    by_document: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_document.setdefault(row["metadata"]["doc"], []).append(row)
    documents = sorted(by_document)
    random.Random(derive_seed(0, "folds")).shuffle(documents)
    found: list[list[dict[str, Any]]] = [[] for _ in range(FOLDS)]
    for document in sorted(documents, key=lambda name: -len(by_document[name])):
        min(found, key=len).extend(by_document[document])
    return found


def task_of(row: Mapping[str, Any]) -> str:
    return "captions" if row["metadata"]["kind"] == "caption" else "questions"


def prepare(folder: Path, fold: int) -> None:
    """A BEIR folder whose judgements are ``train`` (the other folds), ``questions`` and ``captions`` (this one)."""
    out = folder / "pages"
    if (out / "qrels" / "captions.tsv").exists():
        return
    (out / "qrels").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source() / "corpus.jsonl", out / "corpus.jsonl")
    shutil.copyfile(source() / "queries.jsonl", out / "queries.jsonl")
    shutil.copytree(source() / "images", out / "images", dirs_exist_ok=True)
    parts: dict[str, list[dict[str, Any]]] = {"train": [], **{name: [] for name in TASKS}}
    for number, rows in enumerate(folds()):
        for row in rows:
            parts["train" if number != fold else task_of(row)].append(row)
    for name in ("train", *TASKS):
        lines = [f"{row['id']}\t{page}\t1\n" for row in parts[name] for page in row["metadata"]["gold_ids"]]
        (out / "qrels" / f"{name}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(lines), encoding="utf-8")


def tuned(start: str, steps: int) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {
        "encoder": {"backbone": start},
        "data": [{"path": str(folder / "pages"), "split": "train"}],
        "mining": {"retriever": bm25(folder), "last_rank": 20, "negatives": 4},
        "training": {"batch_size": 16, "hard_negatives": 1, "micro_batch": 8, "steps": steps, "learning_rate": 2e-4},
    }


def bm25(folder: Path) -> dict[str, Any]:
    return {"kind": "bm25", "index": str(folder / "indexes" / "bm25"), "corpus": str(folder / "pages" / "corpus.jsonl")}


def pages(name: str, encoder: Callable[[Path], str]) -> Callable[[Path], dict[str, Any]]:
    return lambda folder: {
        "kind": "dense",
        "index": str(folder / "indexes" / name),
        "corpus": str(folder / "pages" / "corpus.jsonl"),
        "encoder": encoder(folder),
    }


def searched(start: str) -> list[Searched]:
    """Every retriever on both tasks."""
    zero = pages("zero-shot", lambda _folder: start)
    own = pages("tuned", lambda folder: str(RetrieverRunLayout(folder / "tuned").encoder))
    rows: Sequence[tuple[str, Callable[[Path], dict[str, Any]], Sequence[str]]] = (
        (BM25, bm25, ()),
        ("page encoder, zero-shot", zero, ()),
        ("page encoder, tuned", own, ["tuned"]),
        (
            "hybrid of bm25 and tuned",
            lambda folder: {"kind": "hybrid", "parts": [bm25(folder), own(folder)]},
            ["tuned"],
        ),
    )
    return [Searched(f"{name}, {task}", how, needs, _reader(task)) for task in TASKS for name, how, needs in rows]


def _reader(task: str) -> Callable[[Path], Task]:
    return lambda folder: beir_task(folder / "pages", task)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", required=True, help="folder of a dense encoder that reads pages")
    parser.add_argument("--folds", type=int, nargs="+", default=list(range(FOLDS)))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/pages_docs"))
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--table", action="store_true", help="Print what is known, measure nothing.")
    options = parser.parse_args()
    trained = [Trained("tuned", tuned(options.start, options.steps))]
    asked = [] if options.table else searched(options.start)
    found = study(options.out, options.folds, trained, asked, _reader("questions"), prepare, options.only)
    for task in TASKS:
        mine = [result for result in found if result.name.endswith(task)]
        print(f"\n{task}\n" + table(mine, f"{BM25}, {task}", pooled=True))


if __name__ == "__main__":
    main()
