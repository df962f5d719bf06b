"""Training on Ray whose processes are killed: the parameters are those of a run that nothing happened to."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
def test_killed_workers_retrievers_and_controllers_change_nothing(tmp_path: Path):
    script = [sys.executable, str(ROOT / "benchmarks" / "cluster_faults.py"), "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*script, "--only", "worker,retriever,controller,interrupt"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    rows = [line for line in done.stdout.splitlines() if " in " in line and " out " in line]
    assert len(rows) == 5, done.stderr[-3000:]
    for row in rows:
        assert " same " in row and " whole " in row and "unscored   0" in row, row
    assert all("0 processes left" in row for row in rows[3:])
