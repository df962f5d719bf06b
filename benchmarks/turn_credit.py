"""Credit by turns against the outcome alone: exact match by the number of rollouts, on the quick start's world.

    python benchmarks/turn_credit.py [--seeds 0 1 2] [--out runs/turn_credit] [--arms outcome gold_found …]
                                     [--weight 0.5] [--gamma 1.0] [--set threads=1]

Every seed has one warm start, from which each arm learns with the same questions and the same number of rollouts. A run
that has ended is read as it is, one cut short is resumed. Printed are dev exact match by optimizer step and test exact
match of the policy that the run publishes, means over the seeds; differences are to ``outcome``, question by question.
``credit`` is the share of a step's seconds that judging turns takes. ``OUT/turn_credit.png`` shows the dev curves.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from sleuth.layout import EvaluationLayout, RunLayout
from sleuth.sinks import read_metrics
from sleuth.statistics import explained, mean_interval, paired_difference
from sleuth.trajectories import read_trajectories

ROOT = Path(__file__).parents[1]
ARMS = ("outcome", "gold_found", "information_gain")
OUTCOME = ARMS[0]
Answers = dict[str, float]
"""Exact match by question id."""


def sleuth(command: str, out: Path, options: argparse.Namespace, seed: int, overrides: Sequence[str]) -> None:
    words = [sys.executable, "-m", "cli.main", command, str(options.config), "--out", str(out)]
    for setting in (f"seed={seed}", *options.overrides, *overrides):
        words += ["--set", setting]
    words += ["--resume"] if out.exists() else []
    with out.with_name(f"{out.name}.log").open("a", encoding="utf-8") as log:
        done = subprocess.run(words, check=False, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"{out} failed: see {log.name}")


def train(options: argparse.Namespace, seed: int, arm: str) -> RunLayout:
    """The finished run of ``arm``, which begins at the seed's warm start."""
    base, out = options.out / f"seed-{seed}-start", options.out / f"seed-{seed}-{arm}"
    layout = RunLayout(out)
    if layout.evaluation("grpo", "search").metrics.exists():
        return layout
    if not out.exists():
        sleuth("warmstart", base, options, seed, [])
        half = out.with_name(f".{out.name}")
        shutil.rmtree(half, ignore_errors=True)
        start = RunLayout(base)
        shutil.copytree(base, half, ignore=shutil.ignore_patterns(start.config.name, start.metrics.name, ".lock"))
        half.rename(out)
    credit = f"{{kind: turns, score: {arm}, gamma: {options.gamma}, weight: {options.weight}}}"
    sleuth("train", out, options, seed, [] if arm == OUTCOME else [f"grpo.credit={credit}"])
    return layout


def answers(evaluation: EvaluationLayout) -> Answers:
    rows = read_trajectories(evaluation.folder)
    return {row.trajectory.question.id: float(row.parts.get("exact_match") or 0.0) for row in rows}


def over_seeds(found: Sequence[Answers]) -> list[float]:
    """Each question's mean over the seeds."""
    return [fmean(one[question] for one in found) for question in sorted(found[0])]


def measure(runs: dict[str, list[RunLayout]]) -> dict[str, dict[str, list[float]]]:
    """By arm, by step of a dev evaluation or ``test``: each question's mean exact match over the seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for arm, layouts in runs.items():
        by_step: dict[int, list[Answers]] = {}
        for layout in layouts:
            for evaluation in layout.grpo.dev_evaluations():
                by_step.setdefault(int(evaluation.folder.name.rpartition("-")[2]), []).append(answers(evaluation))
        found[arm] = {str(step): over_seeds(by_step[step]) for step in sorted(by_step)}
        found[arm]["test"] = over_seeds([answers(layout.evaluation("grpo", "search")) for layout in layouts])
    return found


def credit_share(layouts: Sequence[RunLayout]) -> float:
    rows = [row for layout in layouts for row in read_metrics(layout.metrics) if "time/step" in row]
    return sum(row.get("time/credit", 0.0) for row in rows) / sum(row["time/step"] for row in rows)


def print_table(found: dict[str, dict[str, list[float]]], runs: dict[str, list[RunLayout]]) -> None:
    methods: list[dict[str, str]] = []
    for arm, values in found.items():
        print(f"{arm}: {len(runs[arm])} seeds, credit {credit_share(runs[arm]):.1%} of a step")
        for name, one in values.items():
            interval = mean_interval(one)
            methods.append({"EM": interval.method})
            line = f"  {name:>5}  EM {fmean(one):.3f} [{interval.low:.3f}, {interval.high:.3f}]"
            if arm != OUTCOME and OUTCOME in found:
                apart = paired_difference(found[OUTCOME][name], one)
                methods.append({"difference": apart.method})
                line += f"  difference {apart.difference:+.3f} [{apart.low:+.3f}, {apart.high:+.3f}]"
                line += f", p {apart.p_value:.3f}"
            print(line)
    print(explained("95 % intervals", methods))


def draw(found: dict[str, dict[str, list[float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, (arm, values) in enumerate(found.items()):
        steps = [name for name in values if name != "test"]
        means = [fmean(values[name]) for name in steps]
        intervals = [mean_interval(values[name]) for name in steps]
        spread = [
            [mean - interval.low for mean, interval in zip(means, intervals, strict=True)],
            [interval.high - mean for mean, interval in zip(means, intervals, strict=True)],
        ]
        moved = [int(name) + 0.3 * place for name in steps]  # so that bars do not hide each other
        axes.errorbar(moved, means, yerr=spread, marker="os^"[place % 3], capsize=3, label=arm)
    axes.set(xlabel="optimizer step", ylabel="dev exact match", ylim=(0, 1), title="Credit by turns, same rollouts")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--weight", type=float, default=0.5)
    parser.add_argument("--gamma", type=float, default=1.0)
    parser.add_argument("--out", type=Path, default=Path("runs/turn_credit"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    runs: dict[str, list[RunLayout]] = {arm: [] for arm in options.arms}
    for seed in options.seeds:
        for arm in options.arms:
            runs[arm].append(train(options, seed, arm))
            print(f"seed {seed}, {arm}: done", file=sys.stderr, flush=True)
    found = measure(runs)
    print_table(found, runs)
    draw(found, options.out / "turn_credit.png")


if __name__ == "__main__":
    main()
