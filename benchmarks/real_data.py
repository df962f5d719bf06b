"""What is said of the pool of real questions, worked out again: one function a figure.

    SLEUTH_DATA=... python benchmarks/real_data.py [--index INDEX]

With ``--index``, an index of the pool's passages made by ``sleuth index $SLEUTH_DATA/wiki/corpus.jsonl --out INDEX``,
also how often the gold passages of dev are found, by id and by title.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from envs.questions import load_questions
from retrieval.open import open_retriever
from sleuth.evidence import golds_of, normalise_title
from sleuth.leaks import HeldOut, Leaks, without_leaks
from sleuth.trajectories import read_jsonl
from sleuth.types import Question

SINGLE = ("single", "nq-annotated", "nq-distant")
"""Kinds of questions that one passage answers."""


@dataclass(frozen=True, slots=True)
class Pool:
    titles: Mapping[str, str]
    """Of every passage, by id."""
    train: Sequence[Question]
    dev: Sequence[Question]


def read_pool(folder: Path) -> Pool:
    titles = {row["_id"]: row["title"] for _, row in read_jsonl(folder / "corpus.jsonl")}
    return Pool(titles, *(load_questions(folder / "qa" / f"{split}.jsonl") for split in ("train", "dev")))


def shared_titles(pool: Pool) -> tuple[int, tuple[str, int]]:
    """How many passages have the title of another, and the most frequent title with its count."""
    counts = Counter(pool.titles.values())
    return sum(count for count in counts.values() if count > 1), counts.most_common(1)[0]


def recurring_titles(pool: Pool) -> tuple[int, int]:
    """How many gold titles of dev are gold titles of train too, and how many dev has."""
    train, dev = ({title for q in split for title in q.supporting_titles} for split in (pool.train, pool.dev))
    return len(train & dev), len(dev)


def recurring_passages(pool: Pool) -> tuple[int, int]:
    """The same of gold passages."""
    train, dev = ({name for q in split for name in q.gold_ids} for split in (pool.train, pool.dev))
    return len(train & dev), len(dev)


def leaking_rows(pool: Pool) -> tuple[Leaks, Counter[str]]:
    """The training rows that ``data.leaks: drop`` drops, and how many of each pack."""
    kept, leaks = without_leaks(pool.train, HeldOut.of(pool.dev), lambda question: question)
    return leaks, Counter(q.pack for q in pool.train) - Counter(q.pack for q in kept)


def lost_golds(pool: Pool) -> int:
    """How many gold passages are not in the corpus."""
    return len({name for q in (*pool.train, *pool.dev) for name in q.gold_ids} - pool.titles.keys())


def twice_in_a_title(questions: Sequence[Question]) -> int:
    """Questions that need several passages with one title, which a title alone would count as found after one."""
    needing = (q for q in questions if not q.alternatives)
    return sum(len(q.gold_ids) > len(set(map(normalise_title, q.supporting_titles))) for q in needing)


def golds_found(questions: Sequence[Question], index: Path, k: int) -> Iterator[tuple[str, int, float, float]]:
    """(pack and kind, questions, share of golds among the first ``k`` hits by id, and by title) of each group."""
    found = open_retriever(index, cached=False, resilient=False).search([question.text for question in questions], k)
    rows = [
        (question, *(golds_of(question, by).found(hits) for by in ("id", "title")))
        for question, hits in zip(questions, found, strict=True)
    ]
    groups = set(map(_group, questions))
    for name in ("all but alternatives", *sorted(groups)):
        some = [row for row in rows if (not row[0].alternatives if name not in groups else _group(row[0]) == name)]
        by_id, by_title = (fmean(row[place][0] / row[place][1] for row in some) for place in (1, 2))
        yield name, len(some), by_id, by_title


def _group(question: Question) -> str:
    return f"{question.pack}, {question.kind}"


def _singles(questions: Sequence[Question]) -> str:
    counts = Counter(question.kind for question in questions)
    return ", ".join(f"{kind} {counts[kind]:,}" for kind in SINGLE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SLEUTH_DATA", ".")) / "wiki")
    parser.add_argument("--index", type=Path)
    parser.add_argument("-k", type=int, default=5)
    options = parser.parse_args()
    pool = read_pool(options.data)
    shared, (title, times) = shared_titles(pool)
    print(f"passages {len(pool.titles):,}; {shared:,} share their title with another, '{title}' stands {times} times")
    for name, split in (("train", pool.train), ("dev", pool.dev)):
        single = sum(q.kind in SINGLE for q in split)
        print(
            f"{name}: {len(split):,} questions, {single:,} of one passage ({_singles(split)}), "
            f"{len(split) - single:,} of several;"
            f" {sum(q.alternatives for q in split)} with alternatives, {sum(bool(q.steps) for q in split)} with steps,"
            f" {twice_in_a_title(split)} need several passages with one title"
        )
    print(f"gold passages not in the corpus: {lost_golds(pool)}")
    print("gold titles of dev that recur in train: {:,} of {:,}".format(*recurring_titles(pool)))
    print("gold passages of dev that recur in train: {:,} of {:,}".format(*recurring_passages(pool)))
    leaks, packs = leaking_rows(pool)
    print(
        f"training rows dropped: {leaks.count} of {leaks.of:,}, {leaks.by_passage} for a passage and {leaks.by_title}"
        f" for a title alone ({', '.join(f'{pack} {count}' for pack, count in packs.most_common())})"
    )
    if options.index:
        print(f"gold passages of dev among the first {options.k} hits, by id and by title:")
        for name, count, by_id, by_title in golds_found(pool.dev, options.index, options.k):
            print(f"  {name:<34} {count:>5}  {by_id:.3f}  {by_title:.3f}")


if __name__ == "__main__":
    main()
