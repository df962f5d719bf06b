"""Threads: how many, by model and machine, and how they wait; what a user sets stands."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hub import threads
from hub.threads import threads_for, usable_cores, use_threads, wait_briefly

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


@pytest.fixture(autouse=True)
def untouched(monkeypatch: pytest.MonkeyPatch):
    """Nothing is set by the user, the machine has eight cores, and torch is left as it was."""
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def weights(folder: Path, parameters: int) -> str:
    folder.mkdir()
    (folder / "config.json").write_text("{}" * 1000)
    (folder / "model.safetensors").write_bytes(bytes(4 * parameters))
    return str(folder)


def test_idle_threads_sleep_soon() -> None:
    wait_briefly()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 300_000, "less than the runtime's own"


@pytest.mark.parametrize("name", SETTINGS[:3])
def test_how_to_wait_is_left_to_a_user_who_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    wait_briefly()
    assert {key: os.environ[key] for key in SETTINGS if key in os.environ} == {name: "1"}


def test_the_program_sets_it_before_torch_is_loaded() -> None:
    code = """
import os, sys
import cli.main
assert "torch" not in sys.modules
try:
    cli.main.main(["--version"])
finally:
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("parameters", "tokens", "wanted"),
    [
        (800_000, 1, 1),  # a chat with the quick start's policy
        (800_000, 128, 2),  # its evaluation, many rows at once
        (800_000, 4096, 8),  # its training
        (135_000_000, 1, 2),  # a chat with SmolLM2
        (float("inf"), 1, 8),
    ],
)
def test_a_thread_is_used_where_there_is_work_for_it(parameters: float, tokens: int, wanted: int) -> None:
    assert threads_for(parameters, tokens, cores=8) == wanted


def test_the_size_of_a_model_is_that_of_its_weights(tmp_path: Path) -> None:
    model = weights(tmp_path / "model", 1_000_000)
    use_threads(None, model, tokens=10)
    assert torch.get_num_threads() == 1
    use_threads(None, model, tokens=150)
    assert torch.get_num_threads() == 3
    use_threads(None, f"{model}/model.safetensors", tokens=200)
    assert torch.get_num_threads() == 4


@pytest.mark.parametrize("model", [None, "somebody/on-the-hub"])
def test_a_model_of_unknown_size_takes_all_cores(model: str | None) -> None:
    use_threads(None, model, tokens=1)
    assert torch.get_num_threads() == 8


def test_what_is_set_wins_over_what_suits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = weights(tmp_path / "model", 1000)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    torch.set_num_threads(5)
    use_threads(None, model)
    assert torch.get_num_threads() == 5
    use_threads(3, model)
    assert torch.get_num_threads() == 3


def test_the_count_that_torch_has_is_not_set_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(8)
    calls: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    use_threads(None)
    use_threads(8)
    monkeypatch.undo()
    assert calls == [8], "only what was chosen: setting it changes how MKL orders its sums"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cores_are_those_that_this_process_may_use() -> None:
    one = {min(os.sched_getaffinity(0))}
    code = f"import os; os.sched_setaffinity(0, {one}); from hub.threads import usable_cores; print(usable_cores())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1 <= usable_cores()
