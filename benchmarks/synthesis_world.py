"""Rows written about the made-up world's passages, and what a retriever learns from them alone.

    PYTHONPATH=benchmarks python benchmarks/synthesis_world.py [--seeds 0 1 2] [--steps 600] [--out FOLDER]

All questions are paraphrased: they share no word with a passage, and BM25 finds nothing. The writer is scripted: it
asks about a passage in the world's other words, as a language model would that knows them. It is shown no passage that
a dev or test question needs, so the questions are about names that no row has. A two-layer encoder from random weights
is trained on the written rows; 300 test questions are searched among all 10,500 passages. About two CPU minutes a seed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from agent.writing.asks import Ask, OnReply, Reply
from envs.toy_world.config import WorldSettings
from envs.toy_world.generate import generate_world
from envs.toy_world.wordings import ASK
from retrieval.config import RetrieverSettings
from retrieval.evaluation.evaluate import retrieve
from retrieval.evaluation.judgements import read_qrels, read_queries
from retrieval.evaluation.measures import per_query
from retrieval.open import open_retriever
from retrieval.training.stages import run_all
from sleuth.layout import RetrieverRunLayout
from sleuth.seeding import derive_seed
from sleuth.settings import validate
from workflows.retriever_training import RetrieverRun, claimed
from workflows.synthesis.config import SynthesisSettings
from workflows.synthesis.job import run_synthesis
from workflows.synthesis.layout import SynthesisLayout
from workflows.synthesis.run import Progressing

K = 5


class Paraphraser:
    """A writer that asks for a fact of the passage that it is shown, in the world's other words."""

    name = "paraphraser"
    reserved: frozenset[str] = frozenset()

    def __init__(self, **world: Any) -> None:
        made = generate_world(WorldSettings(**world))
        self._entities, self._lexicon = made.entities, made.lexicon

    def write(self, asks: Sequence[Ask], on_reply: OnReply) -> None:
        for ask in asks:
            on_reply(ask, Reply(self._question(ask)))

    def _question(self, ask: Ask) -> str:
        title = ask.messages[-1].text.splitlines()[0].removeprefix("Title: ")
        relations = sorted(self._entities[title].facts)
        relation = relations[derive_seed(ask.seed, "relation") % len(relations)]
        wording = ASK["chain"][derive_seed(ask.seed, "wording") % len(ASK["chain"])]
        phrase = f"{self._lexicon.reword(relation)} of {self._lexicon.alias(title)}"
        return wording.format(phrase=phrase)


def write(out: Path, world: dict[str, Any], seed: int) -> SynthesisLayout:
    """Write the rows, or read those of a run that is done."""
    settings = validate(
        SynthesisSettings,
        {
            "out": out,
            "seed": seed,
            "world": world,
            "writer": {"kind": "synthesis_world:Paraphraser", "options": world},
            "recipe": {"kind": "queries"},
            "corpus": str(SynthesisLayout(out).world / "corpus.jsonl"),
            "passages": {"min_words": 5},
            "filters": ["length", {"kind": "leakage", "present": True}, {"kind": "near_duplicates", "threshold": 1.0}],
            "chunk": 512,
        },
        "synthesis_world",
    )
    show = Progressing(lambda _: nullcontext(lambda *_: None), lambda _: nullcontext())
    record = run_synthesis(settings, True, False, show)
    kept = {key: record[key] for key in ("kept", "written", "rejects")} | {"left_out": record["units"]["left_out"]}
    print(json.dumps(kept), flush=True)
    return SynthesisLayout(out)


def train(out: Path, written: SynthesisLayout, seed: int, steps: int) -> RetrieverRunLayout:
    """Train on the written rows alone, as ``configs/retriever_world.yaml`` does on real ones."""
    world = written.world
    scratch = {"hidden_size": 128, "layers": 2, "heads": 4, "max_positions": 64, "dropout": 0.0}
    settings = validate(
        RetrieverRun,
        {
            "out": out,
            "seed": seed,
            "encoder": {
                "preset": "plain",
                "scratch": {**scratch, "vocabulary_file": str(world / "vocabulary.txt")},
                "scratch_corpus": str(world / "corpus.jsonl"),
                "settings": {"pooling": "mean", "query_max_tokens": 48, "passage_max_tokens": 48},
            },
            "data": [{"path": str(written.rows)}],
            "training": {
                "batch_size": 64,
                "hard_negatives": 0,
                "learning_rate": 1e-3,
                "warmup_steps": 20,
                "steps": steps,
            },
        },
        "synthesis_world",
    )
    with claimed(settings, True, False, lambda _: nullcontext(lambda *_: None)) as run:
        run_all(run)
    return RetrieverRunLayout(out)


def recall(retriever: dict[str, Any], world: Path, split: str = "test") -> float:
    """Recall@5 of the questions of ``split`` among all passages."""
    corpus = str(world / "corpus.jsonl")
    opened = open_retriever(RetrieverSettings.of(corpus=corpus, **retriever), cached=False, resilient=False)
    judged = read_qrels(world / "qrels" / f"{split}.tsv")
    queries = [query for query in read_queries(world / "queries.jsonl") if query.id in judged]
    found = retrieve(opened, queries, K)
    values = per_query(judged, found.run, [f"R@{K}"], {})[f"R@{K}"]
    return sum(values.values()) / len(values)


def pipeline(out: Path, seed: int, steps: int, **world: Any) -> dict[str, Any]:
    """Write, train, measure; figures of BM25 and of the encoder that learnt from written rows alone."""
    written = write(out / "rows", {"seed": seed, "paraphrase": 1.0, "train": 0, **world}, seed)
    trained = train(out / "trained", written, seed, steps)
    bm25 = {"kind": "bm25", "index": str(out / "bm25")}
    dense = {"kind": "dense", "index": str(out / "dense"), "encoder": str(trained.encoder)}
    rows = sum(1 for _ in written.rows.open(encoding="utf-8"))
    pool = sum(1 for _ in (written.world / "corpus.jsonl").open(encoding="utf-8"))
    return {
        "seed": seed,
        "rows": rows,
        "steps": steps,
        "pool": pool,
        f"bm25 R@{K}": recall(bm25, written.world),
        f"written R@{K}": recall(dense, written.world),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, default=Path("runs/synthesis_world"))
    given = parser.parse_args()
    for seed in given.seeds:
        figures = pipeline(given.out / f"seed-{seed}", seed, given.steps)
        with (given.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
