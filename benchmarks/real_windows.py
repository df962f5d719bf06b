"""What windows, unseen passages and short rows come to on the Wikipedia questions, counted.

    python benchmarks/real_windows.py [--data DIR] [--index DIR] [--limit N]

Prints, for single-hop training questions: how many have an answer of a few words; how often a gold window with the
answer stands at rank 1 and within 5 of BM25 for the question itself; the same within 5 turns of an episode that
searches those words again and again with ``environment.unseen``; and the tokens of a row under the preset ``short``.
The index of windows (64 words every 48) is made once, in a minute. No model is needed but SmolLM2's tokenizer.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from agent.policies.loading import load_codec
from agent.policies.scripted import ScriptedPolicy
from agent.rollout import RolloutDriver
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from envs.questions import load_questions
from retrieval.config import RetrieverSettings
from retrieval.open import open_retriever
from retrieval.progress import build_progress
from sleuth.evidence import contains_answer, golds_of
from sleuth.protocols import Retriever
from sleuth.types import Hit, Question, Sampling, Trajectory

WINDOW = {"words": 64, "stride": 48}
PACKS = {"squad_wiki": "SQuADShifts", "afriqa": "AfriQA", "nq": "NQ", "xquad": "XQuAD"}
DEPTH, WORDS, PLAYED = 5, 5, 200
ENVIRONMENT = EnvironmentSettings(
    preset="short", top_k=1, unseen=True, searches=5, turns=6, turn_tokens=128, observation_tokens=200
)


def single_hop(data: Path, limit: int | None) -> dict[str, list[Question]]:
    """The single-hop training questions by pack; the first ``limit`` of each."""
    packs: dict[str, list[Question]] = defaultdict(list)
    for question in load_questions(str(data / "wiki" / "qa" / "train.jsonl")):
        if question.pack in PACKS:
            packs[question.pack].append(question)
    return {pack: questions[:limit] for pack, questions in packs.items()}


def gold_rank(question: Question, hits: Sequence[Hit]) -> int | None:
    """The rank of the first window of a gold passage that has an answer; None if there is none."""
    golds = golds_of(question)
    found = (h.rank for h in hits if golds.of(h.passage) and contains_answer(h.passage, question.answers))
    return next(found, None)


def few_words(question: Question) -> bool:
    """Whether the first accepted answer, which a demonstration gives, has at most five words."""
    return len(question.answers[0].split()) <= WORDS


def print_ranks(packs: dict[str, list[Question]], retriever: Retriever) -> None:
    print("\nsingle-hop training questions asked as they are; a gold window with the answer")
    print(f"{'':14}{'n':>7}{'at 1':>7}{'within 5':>10}")
    for pack, questions in packs.items():
        texts = [question.text for question in questions]
        found = [
            hits for start in range(0, len(texts), 64) for hits in retriever.search(texts[start : start + 64], DEPTH)
        ]
        ranks = [gold_rank(question, hits) for question, hits in zip(questions, found, strict=True)]
        first, within = (sum(r is not None and r <= k for r in ranks) / len(ranks) for k in (1, DEPTH))
        print(f"{PACKS[pack]:14}{len(ranks):>7,}{first:>7.2f}{within:>10.2f}")


def play_again(questions: Sequence[Question], retriever: Retriever, codec: object) -> list[Trajectory]:
    """Episodes that search the question's own words five times, then answer."""
    texts = {question.id: question for question in questions}

    def said(identity: str, turn: int) -> str:
        question = texts[identity]
        if turn < DEPTH:
            return f"<think> I look. </think>\n<search> {question.text} </search>"
        return f"<think> I read it. </think>\n<answer> {question.answers[0]} </answer>"

    policy = ScriptedPolicy(codec, said)
    driver = RolloutDriver(policy, codec, make_environment(ENVIRONMENT, codec), retriever, 1)
    return driver.run(questions, Sampling(0.0))


def print_played(packs: dict[str, list[Question]], retriever: Retriever, codec: object) -> None:
    print(f"\nplayed with environment.unseen, one window a search, the same words each time ({PLAYED} a pack)")
    print(f"{'':14}{'1 search':>9}{'5 searches':>12}{'windows shown twice':>21}")
    for pack, questions in packs.items():
        played = play_again(questions[:PLAYED], retriever, codec)
        got = [[gold_rank(t.question, turn.hits) is not None for turn in t.searches] for t in played]
        first, any_of = sum(g[0] for g in got) / len(got), sum(map(any, got)) / len(got)
        twice = sum(len(t.hits) - len({hit.passage.id for hit in t.hits}) for t in played)
        print(f"{PACKS[pack]:14}{first:>9.2f}{any_of:>12.2f}{twice:>21}")


def print_lengths(packs: dict[str, list[Question]], retriever: Retriever, codec: object) -> None:
    """Tokens of a whole row: prompt, thought, query, one window, thought, answer."""
    rows = [question for questions in packs.values() for question in questions[:PLAYED] if few_words(question)]
    print("\ntokens of a row (prompt, search, window, answer) in SmolLM2's tokenizer, one search")
    for preset in ("short", "sleuth"):
        settings = ENVIRONMENT.model_copy(update={"preset": preset})
        texts = {question.id: question for question in rows}

        def said(identity: str, turn: int, texts: dict[str, Question] = texts) -> str:
            question = texts[identity]
            return f"<answer> {question.answers[0]} </answer>" if turn else f"<search> {question.text} </search>"

        driver = RolloutDriver(ScriptedPolicy(codec, said), codec, make_environment(settings, codec), retriever, 1)
        lengths = [len(t.token_ids) for t in driver.run(rows, Sampling(0.0))]
        share = sum(length <= 256 for length in lengths) / len(lengths)
        mean, most = statistics.mean(lengths), max(lengths)
        print(f"  preset {preset:8} mean {mean:.0f}, longest {most}, at most 256 in {share:.1%} of {len(lengths)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SLEUTH_DATA", "data")))
    parser.add_argument("--index", type=Path, default=Path("runs/real_windows/index"))
    parser.add_argument("--limit", type=int, help="questions of each pack")
    chosen = parser.parse_args()
    packs = single_hop(chosen.data, chosen.limit)
    settings = {"kind": "bm25", "index": chosen.index, "corpus": str(chosen.data / "wiki" / "corpus.jsonl")}
    retriever = open_retriever(
        RetrieverSettings.model_validate({**settings, "window": WINDOW}),
        cached=False,
        resilient=False,
        progress=build_progress,
    )
    singles = [question for questions in packs.values() for question in questions]
    short = [question for question in singles if few_words(question)]
    of_kind = sum(question.kind == "single" for question in short)
    print(f"{len(singles):,} single-hop training questions, {len(short):,} with an answer of at most {WORDS} words")
    print(f"of kind single alone: {of_kind:,}")
    print_ranks(packs, retriever)
    codec = load_codec("smollm2")
    print_played(packs, retriever, codec)
    print_lengths(packs, retriever, codec)


if __name__ == "__main__":
    main()
