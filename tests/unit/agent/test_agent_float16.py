"""Gradients that are not finite: routine in float16, where the scaler of the loss is lowered, and the end elsewhere."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from transformers import TrainerControl, TrainerState

from agent.learning.callbacks import GradientGuard
from sleuth.errors import TrainingError


class OneWeight(torch.nn.Module):
    """``weight`` is learned from slopes: the loss is slope * weight."""

    def __init__(self, scale: float | None) -> None:
        super().__init__()
        Accelerator(cpu=True)  # the optimizer reads its state
        self.weight = torch.nn.Parameter(torch.zeros(()))
        plain = torch.optim.SGD([self.weight], lr=1.0)
        self.scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
        self.optimizer = AcceleratedOptimizer(plain, device_placement=False, scaler=self.scaler)
        self.guard = GradientGuard("grpo")
        self.state = TrainerState()

    def step(self, slope: float) -> None:
        """In the order of transformers' trainer."""
        loss = self.weight * slope
        (self.scaler.scale(loss) if self.scaler else loss).backward()
        if self.scaler:
            self.scaler.unscale_(self.optimizer.optimizer)
        self.guard.on_pre_optimizer_step(None, self.state, TrainerControl(), model=self, optimizer=self.optimizer)
        self.optimizer.step()
        self.zero_grad()
        self.state.global_step += 1


def test_an_overflow_of_the_scaled_gradient_costs_an_update_and_half_the_scale(caplog):
    model = OneWeight(scale=4.0)
    for _ in range(3):
        model.step(2.0**127)  # times 4 and times 2 it is too large for float32 too
    assert model.scaler.get_scale() == 1.0 and model.weight.item() == -(2.0**127)
    assert [r.getMessage() for r in caplog.records] == [
        f"step {n}: the gradient overflows float16 at a loss scale of {scale}: this update is left out"
        for n, scale in ((0, 4), (1, 2))
    ]


def test_only_repeated_overflow_at_the_least_scale_ends_a_run():
    model = OneWeight(scale=2.0)
    for slope in (float("inf"), float("nan"), float("inf"), 0.0, float("inf"), float("inf")):
        model.step(slope)
    assert model.weight.item() == 0.0 and model.scaler.get_scale() < 1.0
    with pytest.raises(TrainingError, match="a gradient is NaN or infinite at step 6"):
        model.step(float("nan"))


def test_without_a_scaler_the_first_one_ends_it():
    model = OneWeight(scale=None)
    model.step(1.0)
    with pytest.raises(TrainingError, match=r"at step 1: stopped before the update.*grpo\.learning_rate"):
        model.step(float("inf"))
    assert model.weight.item() == -1.0
