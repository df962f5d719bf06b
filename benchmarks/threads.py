"""One command of Sleuth by thread count and by how idle threads wait, alone and beside busy programs.

    python benchmarks/threads.py [--threads 1 2] [--busy 0 1 2] [--rounds 3] [-- evaluate MODEL --data FILE …]

Without a command it evaluates the policy of the quick start, which must have run, on 128 questions, 4 samples each.
``waiting`` is ``default`` (as Sleuth sets it), ``passive`` (no spinning) or ``spinning`` (as GNU's OpenMP does by
itself). The cases take turns; printed are medians of wall and CPU seconds, start of the program included, and the range
of the first.
"""

from __future__ import annotations

import argparse
import itertools
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
WAITING = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "spinning": {"GOMP_SPINCOUNT": "300000"},
}
QUICKSTART = ["evaluate", "runs/quickstart/grpo/policy", "--data", "runs/quickstart/world/test.jsonl"]
QUICKSTART += ["--retriever", "runs/quickstart/index", "--limit", "128", "--samples", "4", "--temperature", "1"]


def seconds(command: Sequence[str], threads: int, waiting: str, busy: int) -> tuple[float, float]:
    """Wall and CPU seconds of one run beside ``busy`` endless loops."""
    unset = {"OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | WAITING[waiting]
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    with tempfile.TemporaryDirectory() as out:
        whole = [sys.executable, "-m", "cli.main", *command, "--out", f"{out}/run", "--set", f"threads={threads}"]
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        try:
            done = subprocess.run(whole, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
        finally:
            for other in others:
                other.kill()
                other.wait()
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, os.cpu_count()])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, os.cpu_count()])
    parser.add_argument("--waiting", choices=WAITING, nargs="+", default=[*WAITING])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("command", nargs="*", default=QUICKSTART)
    options = parser.parse_args()
    cases = [
        case
        for case in itertools.product(options.busy, options.threads, options.waiting)
        if case[1] > 1 or case[2] == options.waiting[0]  # one thread waits for none
    ]
    taken: dict[tuple[int, int, str], list[tuple[float, float]]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for busy, threads, waiting in cases:
            taken[busy, threads, waiting].append(seconds(options.command, threads, waiting, busy))
            wall, _ = taken[busy, threads, waiting][-1]
            print(f"busy {busy}, threads {threads}, {waiting}: {wall:.1f} s", file=sys.stderr, flush=True)
    print(f"{'busy':>4} {'threads':>7} {'waiting':>9} {'wall s':>7} {'range':>13} {'CPU s':>6}")
    for (busy, threads, waiting), runs in taken.items():
        walls, cpu = [wall for wall, _ in runs], statistics.median(cpu for _, cpu in runs)
        spread = f"{min(walls):.1f}-{max(walls):.1f}"
        print(f"{busy:>4} {threads:>7} {waiting:>9} {statistics.median(walls):>7.1f} {spread:>13} {cpu:>6.1f}")


if __name__ == "__main__":
    main()
