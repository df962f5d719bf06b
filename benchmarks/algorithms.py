"""Each algorithm preset for some steps on the made-up world: rewards, gradient norms, seconds, dev exact match.

    python benchmarks/algorithms.py [--out runs/algorithms] [--steps 20] [--only grpo gspo] [--set threads=1]
    python benchmarks/algorithms.py --config configs/smoke.yaml --steps 2 --only grpo gspo     (half a minute)

All start from one warm start, with the seed, the learning rate and the batch of the config (the quick start's) and each
with the KL coefficient of its own preset. Prints a row a preset and draws the reward of all by step (`rewards.png`).
``reward`` is the mean of the first and last quarter of the steps, ``dev`` exact match before and after, ``gradient``
the median and largest norm before clipping, ``step`` the median seconds of a step, evaluation excluded. A preset that
has finished is read as it is, one cut short is resumed from its last checkpoint. One seed and some steps tell whether
a preset learns here, not which is best.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from agent.learning.algorithms import ALGORITHMS
from sleuth.layout import RunLayout

ROOT = Path(__file__).parents[1]
LEFT_BEHIND = ("grpo", "config.yaml", ".lock", "metrics.jsonl")
"""What a preset does not take over from the warm start."""


def settings_of(config: Path, out: Path, steps: int, overrides: Sequence[str], algorithm: str | None = None) -> Any:
    from sleuth.settings import apply_override, read_layers, validate
    from workflows.config import RunSettings, fill_out

    values = read_layers(config)
    values["grpo"].pop("beta", None)  # it would win over the preset's own
    if algorithm is not None:
        values["grpo"]["algorithm"] = algorithm
    saved = next(every for every in (10, 5, 2, 1) if steps % every == 0)
    plain = [f"grpo.steps={steps}", f"grpo.eval_steps={steps}", f"grpo.save_steps={saved}"]
    for override in (*plain, "sinks=[jsonl]", "evaluation.modes=[]", *overrides):
        apply_override(values, override)
    values["out"] = str(out)
    return validate(RunSettings, fill_out(values), str(config))


def train(settings: Any, warm: Path) -> None:
    from workflows.stages import run_stages

    folder = settings.out
    if not folder.exists():
        copy = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(warm, copy, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        copy.rename(folder)
    run_stages(settings, resume=True, overwrite=False)


def summary(rows: Sequence[dict[str, Any]]) -> str:
    steps = [row for row in rows if "reward" in row]
    rewards, quarter = [row["reward"] for row in steps], max(len(steps) // 4, 1)
    dev = [row["dev/em"] for row in rows if "dev/em" in row]
    norms = [row["grad_norm"] for row in steps]
    columns = {
        "reward": f"{fmean(rewards[:quarter]):.3f} -> {fmean(rewards[-quarter:]):.3f}",
        "dev": f"{dev[0]:.3f} -> {dev[-1]:.3f}",
        "gradient": f"{median(norms):8.3g} largest {max(norms):8.3g}",
        "flat": f"{fmean(row['groups/flat'] for row in steps):4.0%}",
        "kl": f"{steps[-1]['kl']:.4f}" if "kl" in steps[-1] else "   -  ",
        "step": f"{median(row['time/step'] for row in steps):5.1f} s",
    }
    return "  ".join(f"{name} {value}" for name, value in columns.items())


def compare(config: Path, out: Path, steps: int, names: Sequence[str], overrides: Sequence[str]) -> None:
    from sleuth.curves import curves_of, draw_curves
    from sleuth.errors import SleuthError, first_line
    from sleuth.sinks import read_metrics
    from workflows.stages import run_stages

    warm = out / "warm"
    run_stages(settings_of(config, warm, steps, overrides), until="warmstart", resume=True, overwrite=False)
    curves = []
    for name in names:
        folder = out / name
        try:
            train(settings_of(config, folder, steps, overrides, name), warm)
        except SleuthError as error:  # one that diverges is a result too
            print(f"{name:20s} {first_line(error)}", flush=True)
            continue
        rows = read_metrics(RunLayout(folder).metrics)
        print(f"{name:20s} {summary(rows)}", flush=True)
        curves += curves_of(rows, {"reward": name})
        draw_curves(curves, out / "rewards.png", title=f"reward by algorithm, {steps} steps", y_label="mean reward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/algorithms"))
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "quickstart.yaml")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(ALGORITHMS), default=list(ALGORITHMS), metavar="NAME")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    compare(given.config, given.out.resolve(), given.steps, given.only, given.overrides)


if __name__ == "__main__":
    main()
