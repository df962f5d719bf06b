"""A whole run on the made-up world whose rollouts vLLM samples: what it samples with is what was just learned."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sleuth.trajectories import read_trajectories

ROOT = Path(__file__).parents[2]
SMALL = [
    "warmstart.steps=30",
    "warmstart.save_steps=30",
    "grpo.steps=2",
    "grpo.warmup_steps=0",
    "grpo.eval_steps=1",
    "grpo.save_steps=1",
]
ENGINE = ["policy.backend=vllm", "policy.vllm.cache_gib=0.25", "policy.vllm.block_size=32", "sinks=[jsonl]"]


def train(out: Path, *more: str) -> str:
    chosen = [part for setting in (*SMALL, *ENGINE, *more) for part in ("--set", setting)]
    command = [sys.executable, "-c", "from cli.main import main; main()", "train", "configs/smoke.yaml"]
    done = subprocess.run(
        [*command, "--out", str(out), *chosen],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(["evaluation.modes=[search]"], id="all weights, in process, with evaluations before and after"),
        pytest.param(
            [
                "policy.vllm.asynchronous=true",
                "grpo.lora={r: 8, alpha: 32}",
                "grpo.learning_rate=0.01",
                "grpo.top_p=0.9",
                "evaluation.modes=[]",
            ],
            id="an adapter, asynchronous, from the nucleus",
        ),
        pytest.param(
            ["cluster={workers: 1, object_store_mb: 200}", "grpo.lora={r: 8, alpha: 32}", "evaluation.modes=[]"],
            id="an adapter, in a worker of a Ray cluster",
        ),
    ],
)
def test_rollouts_of_every_step_are_sampled_with_the_weights_of_that_step(tmp_path, more):
    out = tmp_path / "run"
    train(out, *more)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "check/logprob_gap" in line]
    assert len(steps) == 2
    for line in steps:
        assert line["check/logprob_gap"] < 1e-4
        assert line["check/masked_tokens"] > 0
        assert line["importance/max"] == pytest.approx(1.0, abs=1e-3)  # an engine beside the trainer is corrected for
    assert any(line["grad_norm"] > 0 for line in steps)
    assert [line["step"] for line in lines if "dev/em" in line] == [0, 1, 2]
    for step, path in enumerate(sorted((out / "grpo" / "trajectories").glob("step-*.jsonl"))):
        versions = {t.generation.policy_version for s in read_trajectories(path) for t in s.trajectory.turns}
        assert versions == {step}
    assert (out / "grpo" / "policy").is_dir()
