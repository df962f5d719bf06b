"""Entropy bonus, masks and importance weights in TRL's own loss, against values worked out from the model's logits."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from tiny_job import WORDS, job_of, settings_of

from agent.config import PolicySettings
from agent.learning.grpo import make_trainer
from agent.learning.importance import Importance
from agent.learning.stability import CLIPPED, ImportanceMode
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiny") / "policy"
    build_tiny_policy(made, WORDS, TinySettings(hidden_size=64, layers=2), 0)
    return made


def rollout_of(folder: Path, out: Path, **more):
    """A trainer, and a rollout of its own weights whose rows hold environment tokens."""
    trainer = make_trainer(job_of(folder, out, settings_of(**{"beta": 0.0, "temperature": 0.9, **more})))
    inputs = trainer._generate_and_score_completions([{"prompt": str(i // 3)} for i in range(6)])
    trainer.current_gradient_accumulation_steps = 1
    mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    assert (~mask & inputs["completion_mask"].bool()).any() and (inputs["advantages"][mask] < 0).any()
    return trainer, inputs, mask


@pytest.fixture(scope="module")
def plain(folder, tmp_path_factory):
    return rollout_of(folder, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def rollout(plain, monkeypatch):
    """The same one, put back after every test."""
    trainer, inputs, mask = plain
    for name in ("importance", "loss_type", "importance_sampling_level", "entropy_coef", "_entropy_bonus_enabled"):
        monkeypatch.setattr(trainer, name, getattr(trainer, name))
    for name in ("off_policy_mask_threshold", "top_entropy_quantile", "use_vllm", "vllm_importance_sampling_mode"):
        monkeypatch.setattr(trainer, name, getattr(trainer, name))
    monkeypatch.setattr(trainer.args, "delta", None)
    trainer._metrics["train"].clear()
    trainer.model.train()
    return trainer, inputs, mask


def gradient_of(trainer, loss):
    trainer.model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def loss_gradient(trainer, inputs):
    return gradient_of(trainer, trainer._compute_loss(trainer.model, inputs))


def measured(trainer, name):
    return trainer._metrics["train"][name][-1]


def entropies_of(trainer, inputs):
    """[rows, tokens] from the logits of a plain forward pass."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logits = trainer.model(input_ids=ids, attention_mask=attention).logits.float() / 0.9
    logps = logits[:, inputs["prompt_ids"].shape[1] - 1 : -1].log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)


@pytest.mark.parametrize("loss", ["bnpo", "dr_grpo"])
def test_the_entropy_bonus_is_the_mean_over_the_policy_s_tokens(rollout, loss):
    trainer, inputs, mask = rollout
    trainer.loss_type = loss
    without = trainer._compute_loss(trainer.model, inputs)
    before = gradient_of(trainer, without)
    trainer.entropy_coef, trainer._entropy_bonus_enabled = 0.25, True
    with_bonus = trainer._compute_loss(trainer.model, inputs)
    after = gradient_of(trainer, with_bonus)
    bonus = 0.25 * entropies_of(trainer, inputs)[mask].mean()
    assert (without - with_bonus).item() == pytest.approx(bonus.item(), rel=1e-5)
    expected = gradient_of(trainer, -bonus)
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(after - before, expected, rtol=1e-3, atol=1e-6)
    assert measured(trainer, "entropy") == pytest.approx(4 * bonus.item(), rel=1e-5)


def test_the_coefficient_reaches_the_loss(folder, tmp_path):
    trainer, inputs, mask = rollout_of(folder, tmp_path, entropy_coefficient=0.5)
    with_bonus = trainer._compute_loss(trainer.model, inputs).item()
    trainer._entropy_bonus_enabled = False
    without = trainer._compute_loss(trainer.model, inputs).item()
    assert without - with_bonus == pytest.approx(0.5 * entropies_of(trainer, inputs)[mask].mean().item(), rel=1e-5)


def test_trajectories_far_from_their_sampler_lose_their_negative_tokens(rollout):
    trainer, inputs, mask = rollout
    far = torch.tensor([0.6, 0.4, 0.6, 0.4, 0.6, 0.4])[:, None]  # nats a token, against a threshold of 0.5
    away = {**inputs, "sampling_per_token_logps": inputs["sampling_per_token_logps"] + far * mask}
    dropped = (far > 0.5) & (inputs["advantages"] < 0)
    assert (dropped & mask).any() and ((far < 0.5) & (inputs["advantages"] < 0)).any()
    expected = loss_gradient(trainer, {**inputs, "advantages": inputs["advantages"].masked_fill(dropped, 0.0)})
    trainer.off_policy_mask_threshold = 0.5
    torch.testing.assert_close(loss_gradient(trainer, away), expected)
    assert measured(trainer, "mask/off_policy") == pytest.approx((dropped & mask).sum().item() / mask.sum().item())


def test_only_the_policy_s_tokens_of_the_highest_entropy_carry_the_loss(rollout):
    """Tokens of the environment neither count among the highest nor get any loss."""
    trainer, inputs, mask = rollout
    entropies = entropies_of(trainer, inputs).detach()
    bound = torch.quantile(entropies[mask], 0.8)
    kept = (entropies >= bound) & mask
    assert 0.1 < kept.sum() / mask.sum() < 0.3
    expected = loss_gradient(trainer, {**inputs, "advantages": inputs["advantages"] * kept})
    trainer.top_entropy_quantile = 0.2
    torch.testing.assert_close(loss_gradient(trainer, inputs), expected)
    assert measured(trainer, "mask/low_entropy") == pytest.approx(1 - kept.sum().item() / mask.sum().item())


def test_delta_bounds_the_ratio_of_negative_advantages_too(rollout):
    trainer, inputs, mask = rollout
    shift = torch.where(torch.arange(mask.shape[1]) % 2 == 0, 2.0, 0.5).log().neg()
    old = inputs["sampling_per_token_logps"] + shift * mask  # ratios of 2 and 0.5
    trainer.args.delta = 1.5
    gradient = loss_gradient(trainer, {**inputs, "old_per_token_logps": old})
    bounded = mask & (torch.arange(mask.shape[1]) % 2 == 0)[None] & (inputs["advantages"] < 0)
    trainer.args.delta = None
    without = {**inputs, "advantages": inputs["advantages"].masked_fill(bounded, 0.0), "old_per_token_logps": old}
    torch.testing.assert_close(gradient, loss_gradient(trainer, without))  # at the bound there is no gradient
    assert bounded.any()


def test_importance_weights_are_those_of_trl_for_an_engine_that_it_runs_itself(rollout, monkeypatch):
    trainer, _, _ = rollout
    prompts = [str(i // 3) for i in range(6)]
    played = trainer.rollout_func(prompts, trainer)
    elsewhere = [[v + (0.02 if i % 2 else -0.02) for i, v in enumerate(row)] for row in played["logprobs"]]
    for row, values in enumerate(elsewhere):
        values[0] += 0.15 * (row - 2.5)
    monkeypatch.setattr(trainer, "rollout_func", lambda *_: {**played, "logprobs": elsewhere})
    monkeypatch.setattr(trainer, "vllm_generation", SimpleNamespace(sync_weights=lambda: None), raising=False)
    trainer.use_vllm, trainer._last_loaded_step = True, trainer.state.global_step
    for mode, floor in product(get_args(ImportanceMode), (None, 0.7)):
        trainer.vllm_importance_sampling_mode = mode
        trainer.vllm_importance_sampling_clip_max, trainer.vllm_importance_sampling_clip_min = 1.1, floor
        theirs = trainer._generate_and_score_completions([{"prompt": prompt} for prompt in prompts])
        mask = (theirs["completion_mask"] * theirs["tool_mask"]).bool()
        ours, figures = Importance(1.1, floor, mode).weights(
            theirs["old_per_token_logps"], theirs["sampling_per_token_logps"], mask
        )
        torch.testing.assert_close(ours, theirs["importance_sampling_ratio"])
        assert len(set(ours.flatten().tolist())) > 2
        assert 0 < figures["importance/truncated" if mode.endswith("truncate") else "importance/masked"] < 1


@pytest.mark.parametrize("loss", [*sorted(CLIPPED - {"luspo"}), "cispo", "sapo", "vespo"])
def test_weighted_advantages_are_trl_s_weighted_loss(rollout, loss):
    trainer, inputs, mask = rollout
    trainer.loss_type = loss
    shift = torch.linspace(-1.0, 1.0, mask.shape[1])[None] * mask
    elsewhere = {**inputs, "sampling_per_token_logps": inputs["sampling_per_token_logps"] + shift}
    trainer.importance = Importance(1.5, None, "token_mask")
    ours = loss_gradient(trainer, elsewhere)
    trainer.importance = None
    weights, _ = Importance(1.5, None, "token_mask").weights(
        trainer._current_logps, elsewhere["sampling_per_token_logps"], mask
    )
    trainer.use_vllm = True
    theirs = loss_gradient(trainer, {**elsewhere, "importance_sampling_ratio": weights})
    torch.testing.assert_close(ours, theirs)


def test_rollouts_from_the_nucleus_have_the_log_probs_that_the_trainer_computes(folder, tmp_path):
    job = job_of(folder, tmp_path, settings_of(steps=2, eval_steps=2, save_steps=2, top_p=0.5, temperature=0.9))
    trainer = make_trainer(job)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "reward" in line]
    assert len(lines) == 2 and all(line["check/logprob_gap"] < 1e-4 for line in lines)
    assert trainer.source._rollouts.sampling.top_p == 0.5


def test_an_engine_beside_the_trainer_is_corrected_for_by_itself(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "docs" / "examples")
    beside = PolicySettings(model=str(folder), device="cpu", backend="plain_policy:PlainPolicy")
    job = job_of(folder, tmp_path / "lent", settings_of())
    assert make_trainer(job).importance is None
    assert make_trainer(replace(job, policy=beside)).importance == Importance(2.0)


def test_a_trajectory_without_an_answer_is_truncated_even_if_it_ends_in_an_end_token(folder, tmp_path):
    trainer = make_trainer(job_of(folder, tmp_path, settings_of(mask_truncated=True)))
    play, eos = trainer.source.rollout, trainer.processing_class.eos_token_id

    def in_eos(scored):
        *before, last = scored.trajectory.segments
        ended = replace(last, token_ids=(*last.token_ids[:-1], eos))
        return replace(scored, trajectory=replace(scored.trajectory, segments=(*before, ended)))

    def rollout(prompts, own):
        record = play(prompts, own)
        return replace(record, scored=[in_eos(scored) for scored in record.scored])

    trainer.source.rollout = rollout
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": str(i // 3)} for i in range(6)])
    unanswered = [scored.trajectory.answer is None for scored in trainer._record.scored]
    assert any(unanswered)
    assert (inputs["completion_mask"].sum(1) == 0).tolist() == unanswered
    (ratio,) = trainer._metrics["train"]["completions/clipped_ratio"]
    assert ratio == pytest.approx(sum(unanswered) / 6)


def test_a_run_in_float16_outlives_the_overflows_of_its_first_scales(folder, tmp_path, monkeypatch):
    """As on a GPU: accelerate has no grad scaler on a CPU, torch has."""
    trainer = make_trainer(job_of(folder, tmp_path, settings_of(steps=8, eval_steps=8, save_steps=8)))
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    trainer.accelerator.native_amp = True
    monkeypatch.setattr(trainer.accelerator.state, "_mixed_precision", "fp16")
    trainer.train()
    norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    finite = [torch.isfinite(torch.tensor(norm)).item() for norm in norms]
    skipped = finite.index(True)
    assert len(finite) == 8 and skipped > 2 and all(finite[skipped:])
    assert trainer.accelerator.scaler.get_scale() == 2.0 ** (24 - skipped)
