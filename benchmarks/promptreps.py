"""PromptReps beside BM25 on a small pool: which of its halves finds what, and what the model adds to its own words.

    SLEUTH_DATA=... OMP_NUM_THREADS=1 python benchmarks/promptreps.py [--backbone smollm2] [--passages 250]

A seeded pool of HotpotQA: questions with all their golds, and other passages. Passages are cut to ``--tokens`` tokens
of the model. The row "tokens by idf" scores the tokens that PromptReps weighs by their rarity instead of the model's
logits. Differences are paired over questions, with 95 % intervals.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retrieval.bm25 import BM25Retriever, build_bm25
from retrieval.encoders.indexes import build_encoded
from retrieval.evaluation.judgements import read_qrels, read_queries
from retrieval.open import open_retriever
from retrieval.passages import passage_text
from retrieval.promptreps.config import PromptRepsChoice
from retrieval.promptreps.encoder import open_promptreps
from retrieval.promptreps.index import PROMPTREPS_INDEX
from retrieval.promptreps.terms import tokens_of
from retrieval.training.rows import read_passages
from sleuth.statistics import paired_difference
from sleuth.types import Passage

K = 5
PARTS: dict[str, dict[str, str]] = {
    "dense": {"parts": "dense"},
    "sparse": {"parts": "sparse"},
    "both by sum": {"fusion": "sum"},
    "both by rrf": {"fusion": "rrf"},
}
COMPARED = (
    ("sparse", "both by sum"),
    ("sparse", "both by rrf"),
    ("dense", "sparse"),
    ("tokens by idf", "sparse"),
    ("BM25, cut text", "sparse"),
    ("BM25, cut text", "both by sum"),
)


@dataclass(frozen=True, slots=True)
class Pool:
    passages: list[Passage]
    questions: dict[str, str]
    golds: Mapping[str, set[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SLEUTH_DATA", ".")) / "hotpotqa")
    parser.add_argument("--backbone", default="smollm2")
    parser.add_argument("--passages", type=int, default=250)
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pool = pool_of(options.data, options.questions, options.passages, options.seed)
    settings = PromptRepsChoice(backbone=options.backbone, passage_max_tokens=options.tokens)
    with tempfile.TemporaryDirectory() as folder:
        found = rankings(pool, settings, Path(folder))
    show(pool, found)


def pool_of(data: Path, questions: int, passages: int, seed: int) -> Pool:
    """The first questions of a shuffle, their golds, and further passages up to so many."""
    rng = random.Random(seed)
    qrels, texts = (
        read_qrels(data / "qrels" / "train.tsv"),
        {q.id: q.text for q in read_queries(data / "queries.jsonl")},
    )
    chosen = rng.sample(sorted(qrels.keys() & texts.keys()), questions)
    golds = {query: {passage for passage, grade in qrels[query].items() if grade > 0} for query in chosen}
    corpus = {passage.id: passage for passage in read_passages(str(data / "corpus.jsonl"))}
    needed = sorted(set().union(*golds.values()))
    others = rng.sample(sorted(corpus.keys() - set(needed)), max(0, passages - len(needed)))
    return Pool([corpus[name] for name in sorted([*needed, *others])], {q: texts[q] for q in chosen}, golds)


def rankings(pool: Pool, settings: PromptRepsChoice, folder: Path) -> dict[str, list[list[str]]]:
    """The ids of the best passages of each question, by each contender."""
    encoder, asked = open_promptreps(settings), list(pool.questions.values())
    tokenizer = encoder.tokenizer
    cut = [replace(passage, title="", text=_cut(tokenizer, passage, settings)) for passage in pool.passages]
    found: dict[str, list[list[str]]] = {}
    started = time.process_time()
    build_encoded(PROMPTREPS_INDEX, _written(cut, folder / "cut.jsonl"), folder / "both", encoder, {})
    print(f"{len(cut)} passages encoded in {time.process_time() - started:.0f} CPU seconds", flush=True)
    for name, how in PARTS.items():
        retriever = open_retriever({"index": folder / "both", **how}, cached=False, resilient=False)
        found[name] = [[hit.passage.id for hit in hits] for hits in retriever.search(asked, K)]
    found["tokens by idf"] = by_idf([tokens_of(p.text, tokenizer) for p in cut], asked, cut, tokenizer)
    for name, passages in (("BM25, cut text", cut), ("BM25, full text", pool.passages)):
        index = folder / name.replace(", ", "-").replace(" ", "-")
        build_bm25(_written(passages, folder / "bm25.jsonl"), index)
        found[name] = [[hit.passage.id for hit in hits] for hits in BM25Retriever(index).search(asked, K)]
    return found


def by_idf(
    texts: Sequence[set[int]], asked: Sequence[str], passages: Sequence[Passage], tokenizer: Any
) -> list[list[str]]:
    """Ranked by the summed idf of the tokens shared with the question, ties in corpus order."""
    spread = Counter(token for tokens in texts for token in tokens)
    idf = {token: math.log(1 + (len(texts) - n + 0.5) / (n + 0.5)) for token, n in spread.items()}
    best = []
    for question in asked:
        wanted = tokens_of(question, tokenizer)
        scores = [sum(idf[token] for token in sorted(wanted & tokens)) for tokens in texts]
        order = sorted(range(len(scores)), key=lambda row: (-scores[row], row))[:K]
        best.append([passages[row].id for row in order if scores[row] > 0])
    return best


def show(pool: Pool, found: Mapping[str, list[list[str]]]) -> None:
    """Recall at K of each contender, then the differences."""
    golds = list(pool.golds.values())
    recall = {
        name: [len(own & set(hits)) / len(own) for own, hits in zip(golds, lists, strict=True)]
        for name, lists in found.items()
    }
    print(f"{len(pool.passages)} passages, {len(golds)} questions, recall@{K}")
    for name, values in recall.items():
        print(f"  {name:16} {sum(values) / len(values):.3f}")
    for one, other in COMPARED:
        gain = paired_difference(recall[one], recall[other])
        print(f"  {other} - {one}: {gain.difference:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}], p {gain.p_value:.3f}")


def _cut(tokenizer: Any, passage: Passage, settings: PromptRepsChoice) -> str:
    made = tokenizer(passage_text(passage), add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(made[: settings.passage_max_tokens]))


def _written(passages: Sequence[Passage], path: Path) -> Path:
    rows = [json.dumps({"_id": p.id, "title": p.title, "text": p.text}) for p in passages]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
