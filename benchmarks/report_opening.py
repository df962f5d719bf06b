"""How large a report's page is and how long it takes to open in headless Chromium.

    python benchmarks/report_opening.py RUN [--trajectories 2000] [--repeats 5]

RUN's own trajectories, repeated as further questions until there are as many as asked for, become one more evaluation
of a copy of it. Opening ends when the page says that it is ready; the browser runs already, as a person's does.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "unit" / "cli"))  # the browser of the tests

from chromium import BINARY, chromium  # noqa: E402

from sleuth.layout import RunLayout  # noqa: E402
from sleuth.trajectories import TrajectoryWriter  # noqa: E402
from workflows.report.collect import read_run, read_source  # noqa: E402


def enlarged(run: Path, folder: Path, wanted: int) -> Path:
    """A copy of ``run`` with an evaluation of ``wanted`` trajectories; its checkpoints stay behind."""
    copy = folder / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("checkpoints", "*.safetensors", "index", "world"))
    rows = [row for source in read_run(run, "run").sources for row in read_source(source, [])]
    out = RunLayout(copy).evaluation("repeated", "search").trajectories
    out.parent.mkdir(parents=True)
    with TrajectoryWriter(out) as writer:
        for number, row in enumerate(itertools.islice(itertools.cycle(rows), wanted)):
            question = replace(row.trajectory.question, id=f"repeated-{number}")
            writer.write(replace(row, trajectory=replace(row.trajectory, question=question), origin=None))
    return copy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--trajectories", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if BINARY is None:
        sys.exit("no Chromium on the path: install chromium")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = folder / "page.html"
        command = [sys.executable, "-c", "from cli.main import main; main()", "report"]
        subprocess.run(
            [*command, str(enlarged(options.run, folder, options.trajectories)), "--out", str(page)], check=True
        )
        seconds, cpu = [], []
        with chromium(folder / "profile") as browser:
            for _ in range(options.repeats):
                started, worked = time.perf_counter(), browser.cpu_seconds()
                browser.open(page.as_uri())
                seconds.append(time.perf_counter() - started)
                cpu.append(browser.cpu_seconds() - worked)
        print(
            f"{page.stat().st_size / 1e6:.2f} MB for {options.trajectories} trajectories, opened in"
            f" {statistics.median(seconds):.2f} s (at most {max(seconds):.2f}), {statistics.median(cpu):.2f} CPU s;"
            f" load {os.getloadavg()[0]:.1f}"
        )


if __name__ == "__main__":
    main()
