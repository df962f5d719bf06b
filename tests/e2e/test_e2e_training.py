"""The whole path on a very small world: what must hold at every step, and a run that is killed and resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from cli.main import make_app
from sleuth.sinks import read_metrics
from sleuth.trajectories import read_trajectories
from sleuth.types import ScoredTrajectory

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "smoke.yaml")


def command(out: Path, *more: str) -> list[str]:
    """A step's 12 rows go through the trainer in three pieces."""
    overrides = ["--set", "threads=1", "--set", "grpo.micro_batch=4"]
    return [sys.executable, "-m", "cli.main", "train", CONFIG, "--out", str(out), *overrides, *more]


def sleuth_train(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command(out, *more), capture_output=True, text=True, cwd=ROOT, env=environment, check=False)


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The last checkpoint's weights: the best one may be an earlier one."""
    newest = max((out / "grpo" / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    found = next(newest.glob("*model.safetensors"))
    return load_file(found)


def warm_copy(finished: Path, out: Path) -> None:
    """A run as it was before GRPO; without its config, since another folder means another config."""
    shutil.copytree(finished, out, ignore=shutil.ignore_patterns("grpo*", "metrics.jsonl", "config.yaml", ".lock"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "whole"
    done = sleuth_train(out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_every_step_is_logged_with_its_stages(finished: Path):
    rows = [row for row in read_metrics(finished / "metrics.jsonl") if "reward" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    for row in rows:
        stages = [row[f"time/{s}"] for s in ("generate", "retrieve", "score", "reference", "update")]
        assert all(seconds >= 0 for seconds in stages)
        assert sum(stages) == pytest.approx(row["time/step"], rel=0.05)


def test_sampler_and_trainer_agree_before_every_first_update(finished: Path):
    rows = [row for row in read_metrics(finished / "metrics.jsonl") if "reward" in row]
    assert all(row["check/logprob_gap"] < 1e-4 for row in rows)


def test_the_loss_reads_as_many_tokens_as_were_sampled(finished: Path):
    rows = [row for row in read_metrics(finished / "metrics.jsonl") if "reward" in row]
    kept = list(read_trajectories(finished / "grpo" / "trajectories"))
    for row in rows:
        played = [s.trajectory for s in kept if s.origin and s.origin.step == row["step"] - 1]
        assert row["check/masked_tokens"] == sum(len(turn.generation.token_ids) for t in played for turn in t.turns)


def test_a_closed_run_keeps_its_groups_with_what_trl_weighted_them_with(finished: Path):
    assert [path.name for path in (finished / "grpo" / "trajectories").iterdir()] == ["trajectories.parquet"]
    groups: dict[tuple[int, int], list[ScoredTrajectory]] = {}
    for row in read_trajectories(finished / "grpo" / "trajectories"):
        assert row.origin is not None and row.origin.advantage is not None
        assert {turn.generation.policy_version for turn in row.trajectory.turns} == {row.origin.step}
        groups.setdefault((row.origin.step, row.origin.group), []).append(row)
    assert len(groups) == 6 * 3
    for group in groups.values():
        assert len(group) == 4 and len({row.trajectory.question for row in group}) == 1
        rewards = torch.tensor([row.reward for row in group])
        wanted = (rewards - rewards.mean()) / (rewards.std() + 1e-4)  # Shao et al. 2024, eq. 4, with TRL's epsilon
        found = torch.tensor([row.origin.advantage for row in group])
        assert torch.allclose(found, wanted, atol=1e-4)
    assert len({row.reward for group in groups.values() for row in group}) > 1


def test_the_dev_trajectories_of_every_checkpoint_are_kept(finished: Path):
    dev = {row["step"]: row["dev/em"] for row in read_metrics(finished / "metrics.jsonl") if "dev/em" in row}
    for step, em in dev.items():
        rows = list(read_trajectories(finished / "grpo" / "dev" / f"step-{step:06d}"))
        assert len(rows) == 12
        assert sum(row.parts["exact_match"] for row in rows) / 12 == pytest.approx(em)


def test_every_parameter_moved(finished: Path):
    before, after = load_file(finished / "start" / "model.safetensors"), weights(finished)
    assert before.keys() >= after.keys()
    assert [name for name in after if torch.equal(before[name], after[name])] == []


def test_the_best_checkpoint_is_published_and_evaluated(finished: Path):
    info = json.loads((finished / "stages" / "grpo.json").read_text())
    dev = {row["step"]: row["dev/em"] for row in read_metrics(finished / "metrics.jsonl") if "dev/em" in row}
    assert info["best_em"] == max(dev.values()) == dev[info["best_step"]]
    assert (finished / "grpo" / "policy" / "model.safetensors").exists()
    assert (finished / "evaluation" / "grpo-search" / "predictions.json").exists()
    assert (finished / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "cluster", ["{backend: local, workers: 2}", pytest.param("{backend: ray, workers: 1}", marks=pytest.mark.slow)]
)
def test_an_evaluation_on_a_cluster_finds_what_one_process_finds(finished: Path, tmp_path: Path, cluster: str):
    if "ray" in cluster:
        pytest.importorskip("ray")
    found = []
    for name, settings in (("here", "null"), ("there", cluster)):
        words = ["evaluate", str(finished), "--out", str(tmp_path / name), "--limit", "6", "--samples", "2"]
        words += ["--temperature", "1", "--set", "threads=1", "--set", f"cluster={settings}"]
        done = CliRunner().invoke(make_app(), words)
        assert done.exit_code == 0, done.output
        rows = [
            row for file in sorted((tmp_path / name).rglob("trajectories.jsonl")) for row in read_trajectories(file)
        ]
        found.append([(row.trajectory.question.id, row.trajectory.token_ids, row.reward) for row in rows])
    assert found[0] == found[1] and len(found[0]) == 12


def test_a_run_folder_is_not_run_over(finished: Path):
    done = sleuth_train(finished)
    assert done.returncode == 2
    assert "already holds a run" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("moment", "extra"),
    [
        ("during generation", {"SLEUTH_KILL": "generate:3"}),
        ("during the update", {"SLEUTH_KILL": "update:3"}),
        ("while a checkpoint is written", {"SLEUTH_KILL": "save:4"}),
    ],
)
def test_a_killed_run_resumes_to_the_same_parameters(
    finished: Path, tmp_path: Path, moment: str, extra: dict[str, str]
):
    out = tmp_path / "killed"
    warm_copy(finished, out)
    script = [
        sys.executable,
        str(ROOT / "tests" / "e2e" / "kill_at.py"),
        extra["SLEUTH_KILL"],
        *command(out, "--resume")[3:],
    ]
    killed = subprocess.run(
        script, capture_output=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    done = sleuth_train(out, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = weights(finished), weights(out)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == [], moment
    steps = [row["step"] for row in read_metrics(out / "metrics.jsonl") if "reward" in row]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_ctrl_c_says_how_to_go_on(tmp_path: Path):
    out = tmp_path / "interrupted"
    process = subprocess.Popen(
        command(out),
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
    )
    learning = out / "warmstart.jsonl"  # an interrupt while libraries are imported may be lost in one of them
    while not (learning.exists() and learning.stat().st_size) and process.poll() is None:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "--resume" in errors and "Traceback" not in errors
