"""An encoder trained by two processes: the step of one, and the same bits when all of them are killed and resumed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from families import masked_lm
from ranks_script import gradients, reranker_gradients, work
from test_retrieval_training_run import backbone

from retrieval.training.ranks import mean_over_ranks

pytestmark = pytest.mark.e2e
SCRIPT = Path(__file__).with_name("ranks_script.py")


def on_two_ranks(job: str, model: Path, out: Path) -> list[Any]:
    """What each rank found; this process is the first."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, str(SCRIPT), job, str(model), str(out), "1", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as other:
        try:
            work(job, str(model), str(out), 0, 2)
            assert other.wait(60) == 0
        finally:
            other.kill()
    return [torch.load(out / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_make_the_step_of_one(tmp_path: Path) -> None:
    """Texts are gathered with their gradients: these add up to those of one process with the whole batch.

    Dense, late interaction and sparse, with a regulariser of the whole batch. The batch of 7 queries does not divide,
    that of one leaves a rank without any, and this process is one of the ranks. In float64: gradients of up to 100 are
    sums of terms that cancel, which float32 rounds differently on every processor.
    """
    still = masked_lm(tmp_path / "backbone")
    expected = gradients(still, tmp_path)
    for saved in on_two_ranks("gradients", still, tmp_path):
        assert saved.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(saved[name], gradient, rtol=1e-9, atol=1e-12)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-2


def test_two_ranks_make_a_rerankers_step_of_one(tmp_path: Path) -> None:
    """Each reads its share of the pairs, and both know all scores."""
    still = masked_lm(tmp_path / "backbone")
    expected = reranker_gradients(still, tmp_path)
    for saved in on_two_ranks("reranker", still, tmp_path):
        assert saved.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(saved[name], gradient, rtol=1e-9, atol=1e-12)
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3


def test_two_killed_ranks_end_with_the_same_bits(tmp_path: Path) -> None:
    """With dropout, so each rank has to go on with its own random state."""
    for whole, resumed in on_two_ranks("resume", backbone(tmp_path / "backbone", "bert", dropout=0.3), tmp_path):
        for name, weight in whole.items():
            assert torch.equal(weight, resumed[name]), name


def test_ranks_that_start_apart_train_the_weights_of_the_first(tmp_path: Path) -> None:
    first, second = on_two_ranks("starts", backbone(tmp_path / "backbone", "bert"), tmp_path)
    moved = [name for name, weight in first.items() if "lora_B" in name and weight.any()]
    assert moved
    assert (float(first["a"]), float(first["b"])) == (1.5, 10.0)
    for name, weight in first.items():
        assert torch.equal(weight, second[name]), name


def test_figures_are_reduced_where_the_ranks_train(monkeypatch: pytest.MonkeyPatch) -> None:
    """NCCL takes no tensor of the CPU."""

    class Reduced(Exception):  # noqa: N818
        pass

    def all_reduce(values: torch.Tensor) -> None:
        raise Reduced(values.device.type)

    monkeypatch.setattr("retrieval.training.ranks.get_world_size", lambda: 2)
    monkeypatch.setattr("torch.distributed.all_reduce", all_reduce)
    with pytest.raises(Reduced, match="meta"):
        mean_over_ranks({"loss": 1.0}, torch.device("meta"))
