"""A retriever that a command opens by itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = """
import sys
from hub import threads
from workflows.retrievers import open_alone, retriever_settings
threads.usable_cores = lambda: 3
open_alone(retriever_settings(f"{{kind: '{sys.argv[1]}', options: {{}}}}"))
print(sys.modules["torch"].get_num_threads() if "torch" in sys.modules else "no torch")
"""
PLAIN = """
class Plain:
    fingerprint = "plain"
    def search(self, queries, k):
        return [[] for _ in queries]
"""


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("imports", "threads", "printed"), [("torch", None, "3"), ("torch", "2", "2"), ("os", None, "no torch")]
)
def test_the_model_of_a_retriever_has_the_threads_of_the_machine(
    imports: str, threads: str | None, printed: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("plain")
    (folder / "plain_retriever.py").write_text(f"import {imports}\n{PLAIN}")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"PYTHONPATH": str(folder)} | ({"OMP_NUM_THREADS": threads} if threads else {})
    command = [sys.executable, "-c", CODE, "plain_retriever:Plain"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.stdout.strip() == printed, done.stderr
