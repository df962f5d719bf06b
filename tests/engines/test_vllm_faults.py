"""An open BM25 index and an engine in one process: Java keeps the handler of faults by which it lives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import signal
from agent.cluster.signals import handler_of
from retrieval.jvm import start_jvm
start_jvm()
before = handler_of(signal.SIGSEGV)[:8]
import tvm_ffi, vllm
from trl import GRPOTrainer
assert handler_of(signal.SIGSEGV)[:8] == before
"""


def test_what_is_loaded_after_java_does_not_take_its_faults() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
