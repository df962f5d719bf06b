"""The quick start over several seeds: how far reinforcement lifts exact match, and how sampler and trainer agree.

    python benchmarks/quickstart_seeds.py [--seeds 0 1 2] [--out runs/seeds] [--set threads=1]

Runs the README's training once a seed; a run that has ended is read as it is, one cut short is resumed. ``chains`` are
the one- to three-hop questions; dev is after the warm start and of the best evaluation since, test of the policy that
the run publishes. ``gap`` is the largest difference, in nats, between a log-prob as sampled and as the trainer works it
out before its first update on it.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

from sleuth.layout import RunLayout, read_record
from sleuth.sinks import read_metrics
from workflows.summary import hop_figures

ROOT = Path(__file__).parents[1]
GAP = "check/logprob_gap"


def train(out: Path, seed: int, overrides: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds."""
    settings = [f"seed={seed}", *overrides]
    command = [sys.executable, "-m", "cli.main", "train", str(ROOT / "configs" / "quickstart.yaml"), "--out", str(out)]
    command += [word for setting in settings for word in ("--set", setting)]
    command += ["--resume"] if out.exists() else []
    started, worked = time.monotonic(), _child_seconds()
    with out.with_suffix(".log").open("a", encoding="utf-8") as log:
        subprocess.run(command, check=True, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    return time.monotonic() - started, _child_seconds() - worked


def summary(run: Path) -> str:
    rows = read_metrics(RunLayout(run).metrics)
    dev = [row for row in rows if "dev/em" in row]
    first, best = dev[0], max(dev, key=lambda row: (row["dev/em"], row["step"]))  # of equals a run keeps the latest
    figures = read_record(RunLayout(run).evaluation("grpo", "search").metrics)
    assert figures is not None
    test = figures["by_kind"]
    chains = hop_figures(test)
    assert chains is not None
    gaps = sorted(row[GAP] for row in rows if GAP in row)
    columns = [("chains", "one_to_three_hops", chains[0])]
    columns += [(kind, kind, test[kind]["em"]) for kind in ("comparison", "yes_no")]
    return "  ".join(
        [
            *(
                f"{name} dev {first[f'dev/em_{key}']:.3f} -> {best[f'dev/em_{key}']:.3f}, test {em:.3f}"
                for name, key, em in columns
            ),
            f"gap median {gaps[len(gaps) // 2]:.1e}, largest {gaps[-1]:.1e} of {len(gaps)} steps",
        ]
    )


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        run = (options.out / f"seed-{seed}").resolve()
        wall, cpu = train(run, seed, options.overrides)
        print(f"seed {seed}: {wall:.0f} s wall, {cpu:.0f} s CPU  {summary(run)}", flush=True)


if __name__ == "__main__":
    main()
