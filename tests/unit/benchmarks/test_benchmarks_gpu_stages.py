"""The stages themselves: the plan of a run, parts that are kept, and the whole on a tiny policy."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.config import GrpoSettings
from benchmarks.gpu import prepare
from benchmarks.gpu.context import Context, Parts
from benchmarks.gpu.stages.train import plan
from sleuth.errors import TrainingError
from workflows.config import RunSettings

ROOT = Path(__file__).parents[3]
OTHERS = ("retriever_", "cotrain_", "synthesize_")
RUNS = [path for path in ROOT.glob("configs/*.yaml") if not path.name.startswith(OTHERS)]
RUNS.append(ROOT / "benchmarks" / "gpu" / "wiki.yaml")


def grpo(**changes: object) -> GrpoSettings:
    return GrpoSettings.model_validate({"steps": 200, "questions": 64, "group_size": 8, **changes})


def test_as_many_steps_are_planned_as_fit() -> None:
    speed = {"rows 64": {"step_s": 2.0}, "rows 1024": {"left_out": "out of memory"}, "rows 256": {"step_s": 5.0}}
    assert plan(grpo(), speed, 750.0) == {"steps": 45, "save_steps": 6, "eval_steps": 9}
    assert plan(grpo(steps=20), speed, 750.0)["steps"] == 20, "no more than the config asks for"
    assert plan(grpo(), speed, 1.0) == {"steps": 1, "save_steps": 1, "eval_steps": 1}
    assert plan(grpo(), {"rows 64": {"left_out": "x"}}, 750.0) == plan(grpo(), {}, 750.0) == {}
    two = grpo(minibatches=2, iterations=2, save_steps=4, eval_steps=4)
    planned = plan(two, speed, 750.0)
    assert planned["steps"] == 180 or planned["steps"] == 200
    assert GrpoSettings.model_validate({**two.model_dump(), **planned}), "still between rollouts"


def test_parts_are_kept_and_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    path = tmp_path / "speed.parts.json"
    parts, worked = Parts(path), []

    def fail() -> dict[str, object]:
        raise RuntimeError("no such kernel\nmore")

    assert parts.do("a", fail) is None
    assert parts.do("b", lambda: {"x": worked.append("b") or 1})["x"] == 1
    with pytest.raises(TrainingError, match=r"^a: no such kernel$"):
        parts.check()
    again = Parts(path)
    assert again.do("b", fail)["x"] == 1 and again.do("a", lambda: {"x": 2})["x"] == 2
    again.check()
    assert again.all().keys() == {"a", "b"} and worked == ["b"]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_every_config_of_a_run_has_a_small_form(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLEUTH_DATA", "/data")
    context = Context(tmp_path, path, "cpu", True, 60.0, ("seed=3",), Parts(tmp_path / "parts.json"))
    settings = context.settings("out=elsewhere")
    assert isinstance(settings, RunSettings)
    assert (settings.policy.device, settings.seed, settings.out) == ("cpu", 3, Path("elsewhere"))
    assert settings.grpo is None or settings.grpo.steps == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_load_is_run_on_a_cpu_and_goes_on_after_a_kill(world: Path, tmp_path: Path) -> None:
    given = ["--config", str(world / "run.yaml"), "--encoder", str(world / "encoder"), "--no-wheels"]
    assert prepare.main([str(tmp_path / "load"), *given]) == 0
    command = [sys.executable, "-m", "benchmarks.gpu.run", str(tmp_path / "load" / "pieces"), "--device", "cpu"]
    command += ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out"), "--small"]
    command += ["--set", "environment.turns=2", "environment.searches=1", "environment.turn_tokens=120"]
    quiet = os.environ | {"OMP_NUM_THREADS": "1"}
    checks = [*command, "--only", "doctor", "precision", "speed"]
    assert subprocess.run(checks, cwd=ROOT, env=quiet, check=False).returncode == 0
    told = json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]
    assert told["precision"]["figures"]["sampler transformers float32"]["float32 largest"] < 1e-3
    assert told["precision"]["figures"]["nccl"]["backend"] == "gloo"
    assert told["speed"]["figures"]["rows 4"]["step_s"] > 0

    (tmp_path / "work" / "plan.json").write_text('{"steps": 6, "save_steps": 1, "eval_steps": 2}')
    training = [*command, "--only", "train"]
    killed = subprocess.Popen(training, cwd=ROOT, env=quiet)
    checkpoint = tmp_path / "work" / "run" / "grpo" / "checkpoints" / "checkpoint-2" / "COMPLETE"
    until = time.monotonic() + 600
    while not checkpoint.exists():
        assert killed.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    time.sleep(2)
    assert subprocess.run(training, cwd=ROOT, env=quiet, check=False).returncode == 0
    told = json.loads((tmp_path / "out" / "summary.json").read_text())["stages"]["train"]
    assert told["attempts"] == 2 and told["figures"]["steps"] == 6
    assert told["figures"]["dev_em"].keys() == {"0", "2", "4", "6"}
