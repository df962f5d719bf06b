"""What is said of demonstrations on real questions, worked out again: one function a figure.

    SLEUTH_DATA=... python benchmarks/real_demonstrations.py --index INDEX [--policy smollm2] [--rows 1000]

INDEX is one of the pool's passages, made by ``sleuth index $SLEUTH_DATA/wiki/corpus.jsonl --out INDEX``. ``--rows``: so
many training questions, seeded; 0: all, which takes half an hour of CPU time for each depth.
"""

from __future__ import annotations

import argparse
import os
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from real_data import SINGLE

from agent.demonstrate import Played, play
from agent.policies.loading import load_codec
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from envs.lazy import kind_of
from envs.queries import bare, content_words
from envs.recordings import read_recordings
from envs.searcher import Searcher
from envs.solutions import Solution, read_solutions
from retrieval.open import open_retriever
from sleuth.evidence import has_answer, informative_answers
from sleuth.protocols import Retriever, TextCodec
from sleuth.types import Question


def named_titles(questions: Sequence[Question]) -> Mapping[str, tuple[int, int]]:
    """By pack: in how many questions of one passage its title stands, letter by letter, brackets left out, and of how
    many.
    """
    counts: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        if question.kind in SINGLE:
            asked, titles = question.text.casefold(), map(bare, question.supporting_titles)
            counts[question.pack].append(any(title.casefold() in asked for title in titles))
    return {pack: (sum(found), len(found)) for pack, found in sorted(counts.items())}


def title_words(questions: Sequence[Question]) -> Mapping[str, tuple[int, int]]:
    """The same, with the content words of the title in any order."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for question in questions:
        if question.kind in SINGLE:
            asked = content_words(question.text)
            titles = [content_words(bare(title)) for title in question.supporting_titles]
            counts[question.pack].append(any(words and words <= asked for words in titles))
    return {pack: (sum(found), len(found)) for pack, found in sorted(counts.items())}


def answered_runs(source: Path, retriever: Retriever, k: int) -> tuple[int, int, int, int]:
    """Right runs that searched; of those with an answer that a text can be evidence of: how many, how many have it in
    their own observations, how many in the first ``k`` hits of their searches here.
    """
    runs = [run for run in read_recordings(source) if not run.dropped]
    telling = [run for run in runs if informative_answers(run.question.answers)]
    own = here = 0
    for run in telling:
        answers = informative_answers(run.question.answers)
        own += has_answer("\n".join(p.text for seen in run.observations for p in seen), answers)
        found = retriever.search([step.query for step in run.plan.steps], k)
        here += any(has_answer(hit.passage.text, answers) for hits in found for hit in hits)
    return len(runs), len(telling), own, here


def demonstrations(solutions: Sequence[Solution], codec: TextCodec, retriever: Retriever, k: int) -> list[Played]:
    """Every solution played with the first ``k`` hits of a search, of which there may be four."""
    settings = EnvironmentSettings(top_k=k, turn_tokens=200, observation_tokens=700)
    searchers = [Searcher(solution, reserved=codec.reserved) for solution in solutions]
    return play(searchers, codec, make_environment(settings, codec), retriever, k)


def shares(played: Sequence[Played]) -> Iterator[tuple[str, int, int, str]]:
    """Kind, how many were played and kept, and with how many searches those that were kept."""
    kinds: dict[str, list[Played]] = defaultdict(list)
    for one in played:
        kinds[kind_of(one.trajectory.question)].append(one)
    for kind, some in sorted(kinds.items()):
        kept = [one.trajectory for one in some if not one.dropped]
        searches = sorted(Counter(len(trajectory.queries) for trajectory in kept).items())
        yield kind, len(some), len(kept), ", ".join(f"{n}: {count}" for n, count in searches)


def _said(counts: Mapping[str, tuple[int, int]]) -> str:
    return ", ".join(f"{pack} {found / of:.1%} of {of:,}" for pack, (found, of) in counts.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SLEUTH_DATA", ".")))
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--policy", default="smollm2")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("-k", type=int, nargs="+", default=[1, 3])
    options = parser.parse_args()
    solutions = read_solutions(options.data / "wiki" / "qa" / "train.jsonl")
    questions = [solution.question for solution in solutions]
    print(f"the gold title stands in the question: {_said(named_titles(questions))}")
    print(f"its content words do: {_said(title_words(questions))}")
    retriever = open_retriever(options.index, cached=False, resilient=False)
    for k in options.k:
        runs = options.data / "trajectories/fireact_gpt4_react.jsonl"
        right, telling, own, here = answered_runs(runs, retriever, k)
        print(
            f"{runs.name}: {right} right runs that searched, {telling} of them with an answer that a text can hold: "
            f"{own} have it in their own observations, {here} in the first {k} hits here"
        )
    codec = load_codec(options.policy)
    random.Random(1).shuffle(solutions)
    chosen = solutions[: options.rows or None]
    for k in options.k:
        played = demonstrations(chosen, codec, retriever, k)
        kept = [one for one in played if not one.dropped]
        tokens = sum(len(one.trajectory.token_ids) for one in kept) / max(len(kept), 1)
        print(f"top {k}: {len(kept):,} of {len(played):,} are demonstrations, of {tokens:.0f} tokens on average")
        for kind, count, good, searches in shares(played):
            print(f"  {kind:<32} {good:>5} of {count:>5}  {good / count:.3f}  (searches {searches or '-'})")
        reasons = Counter(one.dropped for one in played if one.dropped).most_common()
        print("  dropped: " + ", ".join(f"{why}: {count}" for why, count in reasons))


if __name__ == "__main__":
    main()
