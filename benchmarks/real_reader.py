"""How well a policy reads: exact match where the passage with the answer is given with the question.

    SLEUTH_DATA=... python benchmarks/real_reader.py MODEL --index INDEX [--limit N] [-k 1 3] [--out FILE]

INDEX is one of windows of the wiki pool (``sleuth index $SLEUTH_DATA/wiki/corpus.jsonl --window 64 --stride 48 --out
INDEX``; a run of ``configs/wiki_smollm2.yaml`` keeps its own in ``index``). Asked are the single-hop dev questions with
answers of at most five words whose gold window is among the first 50 that the question itself finds: with that window
alone, and with the best others beside it (``-k 3``), greedily. ``--limit``: so many of them, seeded. Beside it, for the
same questions: the windows that the question finds, whatever they say.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from agent.config import PolicySettings
from agent.policies.config import VllmSettings
from envs.config import EnvironmentSettings
from envs.questions import load_questions
from envs.reader import with_gold
from retrieval.open import open_retriever
from rewards.text_match import exact_match, f1
from sleuth.statistics import mean_interval
from sleuth.types import Hit, Question, Sampling, Trajectory
from workflows.reading import Given
from workflows.wiring import make_driver, make_policy

SINGLE, WORDS, DEPTH, BATCH = ("single", "nq-annotated"), 5, 50, 64
ENVIRONMENT = EnvironmentSettings(
    kind="rag", preset="short", turns=2, turn_tokens=96, observation_tokens=480, total_tokens=768
)


def asked(data: Path, limit: int | None) -> list[Question]:
    questions = [
        q
        for q in load_questions(str(data / "wiki" / "qa" / "dev.jsonl"))
        if q.kind in SINGLE and len(q.answers[0].split()) <= WORDS
    ]
    random.Random(0).shuffle(questions)
    return questions[:limit]


def shown(
    questions: Sequence[Question], found: Sequence[Sequence[Hit]], k: int, gold: bool
) -> Mapping[str, tuple[Hit, ...]]:
    return {
        q.text: with_gold(q, hits, k, seed=0) if gold else tuple(hits[:k])
        for q, hits in zip(questions, found, strict=True)
    }


def line(name: str, trajectories: Sequence[Trajectory]) -> dict[str, object]:
    """Exact match with its interval, F1 and what each pack has; printed, and returned for a file."""
    em = [exact_match(t.answer, t.question.answers) for t in trajectories]
    by_pack: dict[str, list[float]] = defaultdict(list)
    for value, trajectory in zip(em, trajectories, strict=True):
        by_pack[trajectory.question.pack].append(value)
    mean, interval = sum(em) / len(em), mean_interval(em)
    overlap = sum(f1(t.answer, t.question.answers) for t in trajectories) / len(em)
    packs = {pack: sum(values) / len(values) for pack, values in sorted(by_pack.items())}
    said = ", ".join(f"{pack} {value:.3f} of {len(by_pack[pack])}" for pack, value in packs.items())
    print(
        f"{name:16} EM {mean:.3f} [{interval.low:.3f}, {interval.high:.3f}]  F1 {overlap:.3f}  n {len(em)}  ({said})",
        flush=True,
    )
    return {
        "given": name,
        "em": mean,
        "interval": [interval.low, interval.high],
        "f1": overlap,
        "n": len(em),
        "packs": packs,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SLEUTH_DATA", ".")))
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--limit", type=int)
    parser.add_argument("-k", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    retriever = open_retriever(options.index, cached=False, resilient=False)
    questions = asked(options.data, options.limit)
    found = retriever.search([q.text for q in questions], DEPTH)
    known = [(q, hits) for q, hits in zip(questions, found, strict=True) if with_gold(q, hits, 1, 0)]
    print(f"{len(known)} of {len(questions)} questions find a gold window with the answer within {DEPTH}")
    questions, found = [q for q, _ in known], [hits for _, hits in known]
    policy, codec = make_policy(
        PolicySettings(model=options.model, backend=options.backend, vllm=VllmSettings(max_tokens=768, block_size=32))
    )
    rows = []
    for gold in (True, False):
        for k in options.k:
            given = Given(shown(questions, found, k, gold))
            driver = make_driver(policy, codec, ENVIRONMENT.model_copy(update={"top_k": k}), given)
            played: list[Trajectory] = []
            for start in range(0, len(questions), BATCH):
                played += driver.run(questions[start : start + BATCH], Sampling(0.0))
            rows.append(line(f"{'gold in' if gold else 'found'} top {k}", played))
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
