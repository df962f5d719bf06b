"""Agent and retriever teach each other in the made-up world, beside controls of the same cost.

    python benchmarks/cotrain_world.py [--seeds 0 1 2] [--out FOLDER] [--arms both agent random once]
                                       [--set threads=1] [--small] [--table]

All arms of a seed begin with the world, the warm start and the encoder of 200 judged searches that ``both`` has made
(``configs/cotrain_world.yaml``), and nothing is judged from then on:

    both     two rounds: rollouts, rows from outcomes, retriever, index, GRPO
    agent    the retriever stays; GRPO has as many more steps as the rest of the rounds costs
    random   as both, with as many rows whose positives are drawn at random among the hits
    once     as many rollouts and steps, but all in one round: only the start's retriever finds what is labelled

Every arm is a run of its own, and one cut short is resumed. ``OUT/costs.jsonl`` has the CPU seconds of every start.
Printed are, by arm, recall@5 of the test searches (judged, on held-out entities), EM and gold recall of the agent on
test questions, means over the seeds, with paired differences to the start over all questions of all seeds, and the
precision of the labels by round; ``OUT/cotrain_world.png`` shows them. ``--table`` prints what there is. ``--small``
runs all of it in a few CPU minutes with a world and models in which nothing can be learned: to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sleuth.cotrain_layout import CotrainLayout
from sleuth.layout import EvaluationLayout, RunLayout, read_record
from sleuth.statistics import paired_difference
from workflows.paired import Values, values_of

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "cotrain_world.yaml"
ARMS = ("both", "agent", "random", "once")
STYLES = ("-", "--", "-.", ":")
MEASURES = {"em": "EM", "gold_recall": "gold recall"}


@dataclass(frozen=True, slots=True)
class Budget:
    """Questions, steps of the retriever and updates of GRPO in a round, and updates of ``agent`` in one of its rounds;
    further settings of ``both``, which makes what all begin with, and of every arm.
    """

    questions: int
    steps: int
    updates: int
    alone: int
    both: Sequence[str] = ()
    every: Sequence[str] = ()


WHOLE = Budget(1536, 240, 20, 50)
SMALL = Budget(
    *(10, 4, 2, 4),
    both=[
        "world.paraphrase=0.3",
        "world.kinds={two_hop: 0, three_hop: 0, comparison: 0, yes_no: 0}",
        *(f"world.{name}=40" for name in ("films", "people")),
        *(f"world.{name}=20" for name in ("companies", "cities")),
        *("world.countries=8", "world.train=120", "world.dev=6", "world.test=6"),
        "policy={tiny: {layers: 2, hidden_size: 64}}",
        *("demonstrations.lazy_kinds=[one_hop]", "demonstrations.lazy=0"),
        *("warmstart.steps=80", "warmstart.batch_size=8", "warmstart.warmup_steps=5", "warmstart.save_steps=80"),
        *("cotrain.start.encoder.scratch.hidden_size=32", "cotrain.start.training.steps=40"),
        "cotrain.start.training.batch_size=8",
    ],
    every=[
        "rewards=[{kind: f1}, {kind: search_cost}]",  # which differ in a group though nothing is right
        "cotrain.labels.right_from=0",
        "cotrain.retriever.training.batch_size=8",
        *("environment.turns=3", "environment.searches=2", "environment.turn_tokens=32"),
        *("grpo.questions=2", "grpo.group_size=2", "grpo.save_steps=1", "grpo.eval_limit=4"),
        *("evaluation.bootstrap=20", "evaluation.batch_size=10"),
    ],
)


def changes(arm: str, seed: int, base: CotrainLayout, budget: Budget) -> list[str]:
    """The settings of an arm over those of the config. All but ``both`` begin with what ``both`` has made."""
    once = 2 if arm == "once" else 1
    updates = budget.alone if arm == "agent" else once * budget.updates
    common = [
        f"seed={seed}",
        f"cotrain.questions={once * budget.questions}",
        f"cotrain.retriever.training.steps={once * budget.steps}",
        *(f"grpo.steps={updates}", f"grpo.eval_steps={updates}"),
    ]
    return [*common, *_own(arm, seed, base, budget)]


def _own(arm: str, seed: int, base: CotrainLayout, budget: Budget) -> list[str]:
    if arm == "both":
        return [f"world.seed={seed}", *budget.both, *budget.every]
    made = RunLayout(base.out)
    shared = [
        "world=null",
        f"policy={{model: {made.warmstart}, max_rows: 128}}",
        "demonstrations=null",
        "warmstart=null",
        f"retriever.index={base.start_index}",
        f"retriever.encoder={base.start.encoder}",
        f"retriever.corpus={made.world / 'corpus.jsonl'}",
        f"data.train=[{{path: {made.world / 'train.jsonl'}}}]",
        f"data.dev={made.world / 'dev.jsonl'}",
        f"data.test={made.world / 'test.jsonl'}",
        "cotrain.start=null",
        f"cotrain.judged.path={made.world}",
    ]
    own = {
        "agent": ["cotrain.retriever=null", "grpo.save_steps=14"],
        "random": ["cotrain.labels.kind=random"],
        "once": ["cotrain.rounds=1"],
    }
    every = [one for one in budget.every if arm != "agent" or not one.startswith("cotrain.retriever")]
    return [*shared, *own[arm], *every]


def run_arm(options: argparse.Namespace, seed: int, arm: str) -> None:
    layout = layout_of(options, seed, arm)
    if finished(layout, arm):
        return
    words = [sys.executable, "-m", "cli.main", "cotrain", str(CONFIG), "--out", str(layout.out)]
    budget = SMALL if options.small else WHOLE
    for setting in (*changes(arm, seed, layout_of(options, seed, "both"), budget), *options.overrides):
        words += ["--set", setting]
    words += ["--resume"] if layout.out.exists() else []
    layout.out.parent.mkdir(parents=True, exist_ok=True)
    before = _cpu()
    with layout.out.with_name(f"{layout.out.name}.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(words, check=False, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    with (options.out / "costs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"seed": seed, "arm": arm, "cpu_s": round(_cpu() - before, 1)}) + "\n")
    if done.returncode:
        sys.exit(f"{layout.out} failed: see {log.name}")


def layout_of(options: argparse.Namespace, seed: int, arm: str) -> CotrainLayout:
    return CotrainLayout(options.out.resolve() / f"seed-{seed}-{arm}")


def rounds_of(layout: CotrainLayout) -> list[dict[str, Any]]:
    return (read_record(layout.rounds) or {}).get("rounds", [])


def finished(layout: CotrainLayout, arm: str) -> bool:
    return len(rounds_of(layout)) == (2 if arm == "once" else 3)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_values(layout: CotrainLayout, number: int) -> dict[str, Values]:
    return values_of([EvaluationLayout(layout.round(number).evaluation("test").folder)])


def differences(layouts: Sequence[CotrainLayout], measure: str) -> str:
    """Mean after the last round, and the paired difference to the start over the questions of all seeds."""
    start, end = [], []
    for layout in layouts:
        first, last = (test_values(layout, number)[measure] for number in (0, len(rounds_of(layout)) - 1))
        shared = sorted(first.keys() & last.keys())
        start += [first[key] for key in shared]
        end += [last[key] for key in shared]
    found = paired_difference(start, end)
    return f"{fmean(start):.3f} -> {fmean(end):.3f} ({found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}])"


def table(options: argparse.Namespace, costs: dict[str, float]) -> list[str]:
    lines = ["| arm | seeds | recall@5 by round | EM on test | gold recall | label precision by round | CPU min |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- |")
    for arm in options.arms:
        layouts = [one for seed in options.seeds if finished(one := layout_of(options, seed, arm), arm)]
        if not layouts:
            continue
        rows = [rounds_of(layout) for layout in layouts]
        recalls = [[one["after"]["retriever"]["recall"] for one in of] for of in rows]
        precisions = [[one["rows"].get("precision", 0.0) for one in of if "rows" in one] for of in rows]
        cells = [
            arm,
            str(len(layouts)),
            " ".join(f"{fmean(column):.3f}" for column in zip(*recalls, strict=True)),
            *(differences(layouts, measure) for measure in MEASURES),
            " ".join(f"{fmean(column):.3f}" for column in zip(*precisions, strict=True)),
            f"{costs.get(arm, 0.0) / 60 / len(layouts):.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def costs_of(options: argparse.Namespace) -> dict[str, float]:
    path, found = options.out / "costs.jsonl", dict.fromkeys(ARMS, 0.0)
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        row = json.loads(line)
        found[row["arm"]] += row["cpu_s"] if row["seed"] in options.seeds else 0.0
    return found


def draw(options: argparse.Namespace) -> None:
    """recall@5, EM and label precision by cost, of which ``once`` has that of two rounds; the seeds as points."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    titles = ("recall@5 of held-out searches", "EM on test questions", "precision of labels")
    for place, arm in enumerate(options.arms):
        layouts = [one for seed in options.seeds if finished(one := layout_of(options, seed, arm), arm)]
        by_seed = [rounds_of(layout) for layout in layouts]
        for axis, read in zip(axes, (_recall, _em, _precision), strict=True):
            cost = 2 if arm == "once" else 1
            curves = [
                [(cost * one["round"], value) for one in rows if (value := read(one)) is not None] for rows in by_seed
            ]
            if not any(curves):
                continue
            for curve in curves:
                axis.plot(*zip(*curve, strict=True), "o", color=f"C{place}", alpha=0.4, markersize=4)
            means = [(column[0][0], fmean(value for _, value in column)) for column in zip(*curves, strict=True)]
            axis.plot(*zip(*means, strict=True), color=f"C{place}", linestyle=STYLES[place], label=arm)
    for axis, title, read in zip(axes, titles, (_recall, _em, _precision), strict=True):
        top = None if read is _em else 1.03
        axis.set(title=title, xlabel="cost in rounds", xlim=(-0.1, 2.1), ylim=(0.0, top), xticks=[0, 1, 2])
    axes[0].legend()
    figure.savefig(options.out / "cotrain_world.png", dpi=150)
    pyplot.close(figure)


def _recall(row: dict[str, Any]) -> float | None:
    return float(row["after"]["retriever"]["recall"])


def _em(row: dict[str, Any]) -> float | None:
    return float(row["after"]["agent"]["means"]["em"])


def _precision(row: dict[str, Any]) -> float | None:
    return row["rows"].get("precision") if "rows" in row else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--out", type=Path, help="runs/cotrain_world_study, or with --small runs/cotrain_world_small.")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="A setting for all runs.")
    parser.add_argument("--small", action="store_true", help="To see that it runs; in a folder of its own.")
    parser.add_argument("--table", action="store_true", help="Print what is known, run nothing.")
    options = parser.parse_args()
    options.out = options.out or Path("runs", "cotrain_world_small" if options.small else "cotrain_world_study")
    for seed in options.seeds if not options.table else ():
        for arm in ("both", *(arm for arm in options.arms if arm != "both")):
            run_arm(options, seed, arm)
            print("\n".join(table(options, costs_of(options))), flush=True)
    print("\n".join(table(options, costs_of(options))))
    draw(options)


if __name__ == "__main__":
    main()
