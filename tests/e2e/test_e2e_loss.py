"""The loss and the tokens that the policy did not sample: no gradient, no influence."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import get_args

import pytest
import torch
from tiny_job import WORDS, drive_searching, job_of, settings_of

from agent.config import GrpoSettings
from agent.learning.algorithms import by_token_refused, contradiction
from agent.learning.grpo import make_trainer
from agent.learning.length_groups import length_groups
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from hub.config import LoraSettings
from rewards.config import RewardSettings
from rewards.scorer import make_scorer


@pytest.fixture(params=["full", "lora"])
def trainer(request, tmp_path: Path):
    folder = tmp_path / "policy"
    build_tiny_policy(folder, WORDS, TinySettings(hidden_size=64, layers=2), 0)
    settings = settings_of(
        steps=2,
        group_size=2,
        eval_steps=2,
        save_steps=2,
        beta=0.01,
        temperature=0.9,
        lora=LoraSettings(r=4) if request.param == "lora" else None,
    )

    scorer = make_scorer([RewardSettings.of(kind="exact_match"), RewardSettings.of(kind="format")])
    job = job_of(folder, tmp_path / "run", settings, make_driver=drive_searching, scorer=scorer)
    made = make_trainer(job)
    made._buffer = made._generate_and_score_completions([{"prompt": str(i // 2)} for i in range(4)])
    made._buffer["advantages"] = torch.tensor([1.0, -1.0, 0.5, -0.5])
    made.current_gradient_accumulation_steps = 1
    return made


def loss_of(trainer, inputs):
    return trainer._compute_loss(trainer.model, inputs)


def test_positions_that_predict_environment_tokens_get_exactly_no_gradient(trainer):
    seen = []
    base = trainer.accelerator.unwrap_model(trainer.model)
    norm = next(module for name, module in base.named_modules() if name.endswith("model.norm"))

    def keep(_module, _args, output):
        output.retain_grad()
        seen.append(output)

    handle = norm.register_forward_hook(keep)
    loss = loss_of(trainer, trainer._buffer)
    handle.remove()
    loss.backward()
    inputs = trainer._buffer
    prompt = inputs["prompt_ids"].shape[1]
    sampled = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    lengths = (inputs["prompt_mask"].sum(1) + inputs["completion_mask"].sum(1)).tolist()
    (entered,) = length_groups(lengths)  # the order in which rows enter the model
    (states,) = seen
    gradient = states.grad[torch.tensor(entered).argsort(), prompt - 1 : -1]  # position t predicts token t + 1
    assert sampled.any() and (~sampled & inputs["completion_mask"].bool()).any()
    assert (gradient[~sampled] == 0).all()
    assert (gradient[sampled].abs().sum(-1) > 0).any()


def with_other_targets(trainer, where, change):
    """The loss when the log-probs of the targets at ``where`` were others, everything else alike."""
    compute = trainer._get_per_token_logps_and_entropies

    def changed(*args, **kwargs):
        logps, *rest = compute(*args, **kwargs)
        return (torch.where(where, logps + change, logps), *rest)

    trainer._get_per_token_logps_and_entropies = changed
    try:
        return loss_of(trainer, trainer._buffer).item()
    finally:
        del trainer._get_per_token_logps_and_entropies


def test_other_targets_change_the_loss_only_where_the_policy_sampled(trainer):
    inputs = trainer._buffer
    before = loss_of(trainer, inputs).item()
    sampled = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    assert with_other_targets(trainer, ~sampled, -3.0) == before
    assert with_other_targets(trainer, sampled, -3.0) != before


def test_recomputed_logprobs_equal_the_sampled_ones(trainer):
    trainer.sampled_at_step = trainer.state.global_step
    loss_of(trainer, trainer._buffer)
    (gap,) = [gap for metrics in trainer._metrics.values() for gap in metrics["check/logprob_gap"]]
    assert gap < 1e-4


def test_the_reference_is_the_policy_before_it_learned(trainer):
    inputs = trainer._buffer
    mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    gap = (inputs["ref_per_token_logps"] - inputs["sampling_per_token_logps"])[mask].abs().max()
    assert gap < 1e-4


def test_an_advantage_for_each_token_is_one_for_the_row_in_every_loss(trainer):
    inputs = trainer._buffer
    a_row = inputs["advantages"]
    sampled = inputs["completion_mask"] * inputs["tool_mask"]
    *_, parameter = (p for p in trainer.model.parameters() if p.requires_grad and p.ndim > 1)
    old = inputs["sampling_per_token_logps"] + 0.3 * torch.linspace(-1, 1, sampled.shape[1])  # some ratios are clipped
    losses = get_args(GrpoSettings.model_fields["loss"].annotation)
    assert len(losses) == 8
    for loss_type, level in product(losses, get_args(GrpoSettings.model_fields["importance"].annotation)):
        trainer.loss_type, trainer.importance_sampling_level = loss_type, level
        found = []
        for advantages in (a_row, a_row[:, None] * sampled):
            loss = loss_of(trainer, {**inputs, "old_per_token_logps": old, "advantages": advantages})
            (gradient,) = torch.autograd.grad(loss, [parameter])
            found.append((loss.detach(), gradient))
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-7)
        assert found[0][1].abs().max() > 0, loss_type


def gradient_by_token(trainer, inputs):
    """Of the loss, by the log-prob of each token of the completions."""
    compute, leaves = trainer._get_per_token_logps_and_entropies, []

    def cut_off(*args, **kwargs):
        logps, *rest = compute(*args, **kwargs)
        leaves.append(logps.detach().requires_grad_())
        return (leaves[0], *rest)

    trainer._get_per_token_logps_and_entropies = cut_off
    try:
        (gradient,) = torch.autograd.grad(loss_of(trainer, inputs), leaves)
    finally:
        del trainer._get_per_token_logps_and_entropies
    return gradient


def test_a_turn_s_advantage_reaches_its_own_tokens_in_every_loss_that_is_not_refused(trainer):
    inputs = {**trainer._buffer}
    sampled = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    trainer.beta = 0.0
    row = int(sampled.sum(1).argmax())
    own = sampled[row].nonzero().squeeze(1)
    first, rest = own[: len(own) // 2], own[len(own) // 2 :]
    losses = get_args(GrpoSettings.model_fields["loss"].annotation)
    levels = get_args(GrpoSettings.model_fields["importance"].annotation)
    refused, mixed = set(), set()
    for loss_type, level in product(losses, levels):
        if contradiction(loss_type, level):
            continue
        trainer.loss_type, trainer.importance_sampling_level = loss_type, level
        found = []
        for later in (1.0, 3.0):
            advantages = torch.zeros_like(sampled, dtype=torch.float32)
            advantages[row, first], advantages[row, rest] = 2.0, later
            found.append(gradient_by_token(trainer, {**inputs, "advantages": advantages}))
        if by_token_refused(loss_type, level):
            refused.add((loss_type, level))
        else:
            # on the policy that sampled, the descent on a token's loss is its advantage times one constant
            assert torch.allclose(found[0][row, first] / 2.0, found[0][row, rest[0]], rtol=1e-5), loss_type
            assert torch.allclose(found[1][row, rest], 3.0 * found[0][row, rest], rtol=1e-5), loss_type
            assert (found[0][row, own] < 0).all() and (found[0][~sampled] == 0).all()
        if not torch.allclose(found[0][row, first], found[1][row, first], rtol=1e-5, atol=0.0):
            mixed.add((loss_type, level))
    assert mixed == {("grpo", "sequence"), ("sapo", "sequence"), ("luspo", "sequence")}
    assert refused == {*mixed, ("vespo", "token")}, "VESPO's weight is of a sequence with one advantage"


def test_an_unscored_row_moves_nothing(trainer):
    inputs = dict(trainer._buffer)
    inputs["tool_mask"] = torch.zeros_like(inputs["tool_mask"])
    loss_of(trainer, inputs).backward()
    gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    assert gradients and all((g == 0).all() for g in gradients)
