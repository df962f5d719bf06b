"""The table of docs/real_text.md: every arm's evaluation on the wiki suite, paired differences, curves and CPU hours.

    SLEUTH_DATA=... python benchmarks/real_text.py [ARM ...] [--runs runs] [--out runs/real_text]

Each ARM is evaluated by ``sleuth evaluate`` into a folder of ``--out`` (finished ones are read again, a stopped one
goes on); without ARM, only what is there is printed. The primary endpoint, named before any run: the trained reward, 4
samples a question at temperature 1, paired by question over the suite's multi-hop and single-hop dev questions. Arms
are those of ``ARMS``: the base model, the policy that GRPO begins with, the last one of each GRPO (``grpo``:
``configs/wiki_smollm2_grpo.yaml``, ``grpo-2``: ``configs/wiki_smollm2_grpo2.yaml``), and the control, which goes on
learning from its own right rollouts (``configs/wiki_smollm2_control.yaml``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from rewards.text_match import cover_match, exact_match
from sleuth.layout import EvaluationLayout, GridLayout, RunLayout, read_record
from sleuth.runs import RunFolder
from sleuth.sinks import read_metrics
from sleuth.statistics import mean_interval
from sleuth.types import ScoredTrajectory
from workflows.config import load_run_settings
from workflows.paired import Values, compare, values_of
from workflows.play import played

CONFIG = "configs/wiki_smollm2_grpo.yaml"
BATCH = 128
PARTS = ("generate", "reference", "update", "step")
DEV, HOTPOTQA = ("multi-hop", "single-hop"), "hotpotqa"
"""The sets of the suite that the primary endpoint is measured on, and the one that is only answered greedily."""


@dataclass(frozen=True, slots=True)
class Arm:
    """How ``policy`` (a config, or a folder under ``--runs``) answers: greedily, or 4 times at temperature 1."""

    policy: str
    modes: Sequence[str]
    settings: Sequence[str] = ()
    """Beside those of the run that the policy is in."""
    sampled: bool = False


_BASE = ("environment.preset=sleuth", "environment.turn_tokens=128")
RUNS = ("wiki_smollm2_grpo", "wiki_smollm2_grpo2")
WARM, CONTROL = f"{RUNS[0]}/warmstart", "wiki_smollm2_control/warmstart"
GRPO, GRPO_2 = (f"{run}/grpo/policy" for run in RUNS)
ARMS: Mapping[str, Arm] = {
    # no one has taught the base model, so it is told what to do at length and may say more
    "base": Arm(CONFIG, ("direct", "cot", "rag@1"), ("policy.model=smollm2", *_BASE)),
    "warm": Arm(WARM, ("direct", "rag@1", "search")),
    "warm-3": Arm(WARM, ("rag@3",), ("environment.observation_tokens=480",)),
    "grpo": Arm(GRPO, ("rag@1", "search")),
    "grpo-2": Arm(GRPO_2, ("rag@1", "search")),
    "control": Arm(CONTROL, ("rag@1", "search")),
    "warm-sampled": Arm(WARM, ("search",), sampled=True),
    "grpo-sampled": Arm(GRPO, ("search",), sampled=True),
    "grpo-2-sampled": Arm(GRPO_2, ("search",), sampled=True),
    "control-sampled": Arm(CONTROL, ("search",), sampled=True),
}
PAIRS = [
    (("base", "direct"), ("base", "rag@1")),
    (("warm", "direct"), ("warm", "rag@1")),
    (("warm", "rag@1"), ("warm", "search")),
    (("warm", "search"), ("grpo", "search")),
    (("warm", "search"), ("control", "search")),
    (("warm", "search"), ("grpo-2", "search")),
    (("control", "search"), ("grpo", "search")),
    (("control", "search"), ("grpo-2", "search")),
    (("grpo-2", "rag@1"), ("grpo-2", "search")),
    (("warm-sampled", "search"), ("grpo-sampled", "search")),
    (("warm-sampled", "search"), ("control-sampled", "search")),
    (("warm-sampled", "search"), ("grpo-2-sampled", "search")),
    (("control-sampled", "search"), ("grpo-sampled", "search")),
    (("control-sampled", "search"), ("grpo-2-sampled", "search")),
]
"""What is paired by question: the second against the first."""


def evaluate(name: str, runs: Path, out: Path) -> None:
    """Run or finish ``sleuth evaluate`` for an arm. Raises CalledProcessError if it fails."""
    arm, folder = ARMS[name], out / name
    policy = arm.policy if arm.policy == CONFIG else runs / arm.policy
    command = [sys.executable, "-m", "cli.main", "evaluate", f"{name}={policy}", f"--out={folder}"]
    command += ["--suite=wiki", f"--batch-size={BATCH}"]
    command += [f"--mode={mode}" for mode in arm.modes] + [f"--set={setting}" for setting in arm.settings]
    command += ["--samples=4", "--temperature=1", f"--set=suite.sets.{HOTPOTQA}=null"] if arm.sampled else []
    command += ["--resume"] if folder.exists() else []
    subprocess.run(command, check=True)


def answered(out: Path) -> dict[tuple[str, str], dict[str, list[EvaluationLayout]]]:
    """By arm and mode, the samples of each set that was evaluated to its end."""
    found: dict[tuple[str, str], dict[str, list[EvaluationLayout]]] = defaultdict(dict)
    for name in ARMS:
        metrics = GridLayout(out / name).metrics
        for cell in json.loads(metrics.read_text())["cells"] if metrics.exists() else []:
            layout = EvaluationLayout(out / name / cell["folder"])
            found[name, cell["mode"]][cell["data"]] = layout.samples(4 if ARMS[name].sampled else 1)
    return found


def values_over(sets: Mapping[str, Sequence[EvaluationLayout]], names: Sequence[str]) -> Mapping[str, Values]:
    return values_of([sample for name in names if name in sets for sample in sets[name]])


def values_of_hotpotqa(sets: Mapping[str, Sequence[EvaluationLayout]]) -> Mapping[str, Values]:
    """Those of its own set, where that was asked, and of its questions among the multi-hop ones."""
    rows = [row for name in (DEV[0], HOTPOTQA) for sample in sets.get(name, ()) for row in played(sample)]
    questions = [row.trajectory.question for row in rows]
    asked = {(q.id, q.text) for q in questions if not q.pack or q.pack.startswith(HOTPOTQA)}
    every = values_over(sets, [DEV[0], HOTPOTQA])
    return {measure: {key: v for key, v in values.items() if key in asked} for measure, values in every.items()}


def line(title: str, values: Mapping[str, Values]) -> str:
    """Each measure's mean over questions, that of EM and of the reward with their intervals."""
    words = []
    for measure in ("em", "f1", "reward", "gold_recall", "searches"):
        if column := list(values.get(measure, {}).values()):
            interval = mean_interval(column)
            span = f" [{interval.low:.3f}, {interval.high:.3f}]" if measure in ("em", "reward") else ""
            words.append(f"{measure} {fmean(column):.3f}{span}")
    return f"{title:34} n {len(values.get('em', {})):4}  " + "  ".join(words)


def by_kind(rows: Sequence[ScoredTrajectory]) -> Iterator[str]:
    """EM by pack and kind of question."""
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        question = row.trajectory.question
        groups[question.pack, question.kind].append(exact_match(row.trajectory.answer, question.answers))
    for (pack, kind), column in sorted(groups.items()):
        yield f"{pack}/{kind} {fmean(column):.3f} of {len(column)}"


def said(row: ScoredTrajectory) -> float:
    """1 if an accepted answer stands in the text of any turn, in its tags or not."""
    text = " ".join(turn.text for turn in row.trajectory.turns)
    return cover_match(text, row.trajectory.question.answers, "words")


def show(out: Path) -> None:
    found = answered(out)
    for (name, mode), sets in found.items():
        print(line(f"{name} {mode}, multi- and single-hop", values_over(sets, DEV)))
        for each in sets:
            print(line(f"  {each}", values_over(sets, [each])))
        print(line("  all of HotpotQA that was asked", values_of_hotpotqa(sets)))
        rows = [row for each in DEV if each in sets for sample in sets[each] for row in played(sample)]
        print(f"  EM by kind: {', '.join(by_kind(rows))}")
        print(f"  an accepted answer stands anywhere in what it says: {fmean(map(said, rows)):.3f}")
    print("\nPaired by question, over the multi-hop and single-hop dev questions:")
    for before, after in PAIRS:
        if before in found and after in found:
            change = compare(values_over(found[before], DEV), values_over(found[after], DEV))
            print(f"{' '.join(after)} against {' '.join(before)}: {', '.join(_changes(change))}")
            change = compare(values_of_hotpotqa(found[before]), values_of_hotpotqa(found[after]))
            print(f"  HotpotQA, {change['n']}: {', '.join(_changes(change))}")


def _changes(change: Mapping[str, object]) -> Iterator[str]:
    for measure in ("em", "f1", "reward", "gold_recall", "searches"):
        one = change if measure == "em" else change.get(measure)
        if isinstance(one, Mapping):
            yield f"{measure} {one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"


def show_cost(runs: Path) -> None:
    """Wall time of each training, of one process on one thread, and of GRPO's parts; demonstrations and gates."""
    for run in ("wiki_smollm2", "wiki_smollm2_grpo", "wiki_smollm2_control"):
        layout = RunLayout(runs / run)
        log = layout.warmstart.with_suffix(".jsonl")
        if log.exists():
            rows = read_metrics(log)
            timed = [row["time/row"] for row in rows if "time/row" in row]
            spent = f"{sum(timed) / 60:.0f} minutes in all" if timed else "its time was not kept"
            print(f"{run}, warm start: {rows[-1]['step']:.0f} steps, {spent}")
        told = RunFolder(layout.out).stage_info("demonstrate")
        if told:
            print(f"  {told['kept']:,} of {told['played']:,} demonstrations kept")
        if gate := read_record(layout.gate.metrics):
            print(f"  gate: {gate['line']}")
    for run, steps in steps_of(runs).items():
        timed = [row for row in steps if "time/step" in row]
        sums = {part: sum(row.get(f"time/{part}", 0.0) for row in timed) / 60 for part in PARTS}
        parts = ", ".join(f"{part} {minutes:.0f}" for part, minutes in sums.items())
        print(f"{run}: {len(timed)} steps; minutes: {parts}")


def steps_of(runs: Path) -> dict[str, list[dict[str, float]]]:
    """The rows of each GRPO that was begun."""
    found = {run: RunLayout(runs / run).metrics for run in RUNS}
    return {run: read_metrics(path) for run, path in found.items() if path.exists()}


def draw(runs: Path, path: Path) -> None:
    """Reward, searches and dev EM of each GRPO by the rollouts that it has learned from."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    panels = {
        "reward, mean of 5 rollouts": "reward",
        "searches, mean of 5 rollouts": "rollout/searches",
        "dev EM of 96 questions": "dev/em",
    }
    names = {RUNS[0]: ("grpo", "#33658a"), RUNS[1]: ("grpo-2", "#c1440e")}
    for run, rows in steps_of(runs).items():
        name, color = names[run]
        grpo = load_run_settings(RunLayout(runs / run).config).grpo
        updates = 1 if grpo is None else grpo.updates_per_rollout
        for axis, (title, key) in zip(axes, panels.items(), strict=True):
            points = [(row["step"] / updates, row[key]) for row in rows if key in row]
            if key != "dev/em":  # rollouts differ in their questions
                points = trailing(points, 5 * updates)
            axis.plot(*zip(*points, strict=True), marker="." if key == "dev/em" else None, color=color, label=name)
            axis.set(title=title, xlabel="rollouts of 64")
            axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=110)
    print(f"curves: {path}")


def trailing(points: Sequence[tuple[float, float]], last: int) -> list[tuple[float, float]]:
    """Each point with the mean of itself and those before it, ``last`` in all."""
    spans = [points[max(0, place + 1 - last) : place + 1] for place in range(len(points))]
    return [(span[-1][0], fmean(value for _, value in span)) for span in spans]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("runs/real_text"))
    given = parser.parse_args()
    if unknown := [name for name in given.arms if name not in ARMS]:
        parser.error(f"no arm {unknown[0]}; there are {', '.join(ARMS)}")
    for name in given.arms:
        evaluate(name, given.runs, given.out)
    show(given.out)
    show_cost(given.runs)
    draw(given.runs, given.out / "real_text.png")


if __name__ == "__main__":
    main()
