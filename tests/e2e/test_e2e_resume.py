"""GRPO that is stopped and resumed: what was trained, how far, and by which reference model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_job import WORDS, TokenSum, job_of, settings_of

from agent.config import PolicySettings
from agent.learning.grpo import make_trainer, train_grpo
from agent.learning.options import load_trained
from agent.policies.adapters import peft_config
from agent.policies.loading import load_policy_model
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from hub.config import LoraSettings
from sleuth.checkpoints import is_complete
from sleuth.errors import TrainingError
from sleuth.layout import GrpoOutcome
from sleuth.trajectories import read_trajectories


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny") / "policy"
    build_tiny_policy(made, WORDS, TinySettings(hidden_size=64, layers=2), 0)
    return made


def trained(job, start: Path | None = None):
    """Trainable weights after training, begun from the checkpoint ``start``."""
    trainer = make_trainer(job)
    trainer.train(resume_from_checkpoint=str(start) if start else None)
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def assert_resumes(job, step: int) -> None:
    """A run that goes on from ``step`` ends in the weights of the run that was never stopped."""
    whole = trained(job)
    start = job.layout.checkpoints / f"checkpoint-{step}"
    assert is_complete(start)
    again = trained(replace(job, out=job.out.with_name("again")), start)
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_an_adapter_that_was_there_before_goes_on_where_it_was(folder: Path, tmp_path: Path):
    from peft import get_peft_model

    model, codec = load_policy_model(PolicySettings(model=str(folder)), str(folder))
    get_peft_model(model, peft_config(LoraSettings(r=4))).save_pretrained(tmp_path / "adapter")
    codec.tokenizer.save_pretrained(tmp_path / "adapter")
    settings = settings_of(save_steps=2, eval_steps=2, beta=0.01, keep_checkpoints=5)
    assert_resumes(job_of(tmp_path / "adapter", tmp_path / "run", settings), 2)


def test_a_reference_that_follows_the_policy_goes_on_where_it_was(folder: Path, tmp_path: Path):
    settings = settings_of(save_steps=3, eval_steps=3, steps=6, beta=0.5, sync_reference=2, keep_checkpoints=5)
    assert_resumes(job_of(folder, tmp_path / "run", settings), 3)


class Breaks(TokenSum):
    """Raises on every trajectory of the third rollout and later ones, until it is mended."""

    def __init__(self) -> None:
        self.scored, self.mended = 0, False

    def score(self, trajectory):
        self.scored += 1
        if self.scored > 2 * 6 and not self.mended:
            raise KeyError("table")
        return super().score(trajectory)


def test_a_run_that_could_not_score_enough_stops_and_goes_on_where_it_was(folder: Path, tmp_path: Path):
    settings = settings_of(beta=0.01, keep_checkpoints=5)  # saves at step 4 only
    whole = trained(job_of(folder, tmp_path / "whole", settings))
    job = job_of(folder, tmp_path / "run", settings, scorer=Breaks())
    with pytest.raises(TrainingError, match=r"^6 of 6 trajectories of step 2 could not be scored \(the scorer: 6\)"):
        train_grpo(job)
    assert is_complete(job.layout.checkpoints / "checkpoint-2")
    kept = list(read_trajectories(job.layout.trajectories))
    assert [row.reward is None for row in kept] == [False] * 12 + [True] * 6
    job.scorer.mended = True
    train_grpo(job, resume=True)
    again = load_file(job.layout.checkpoints / "checkpoint-4" / "model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in again)


def test_training_that_stopped_early_has_ended(folder: Path, tmp_path: Path):
    settings = settings_of(steps=8, save_steps=1, eval_steps=1, early_stop=2, keep_checkpoints=5)
    ems = iter([0.5, 0.25, 0.25])
    job = job_of(folder, tmp_path / "run", settings, evaluate=lambda _: {"em": next(ems)})
    first = train_grpo(job)
    assert (first.best_step, first.best_em, first.last_step) == (0, 0.5, 2)
    assert train_grpo(job, resume=True) == first


def test_learners_on_a_cluster_that_ended_have_ended(folder: Path, tmp_path: Path):
    """Their record once told where the policy lies, which the reader did not expect."""
    job = job_of(folder, tmp_path / "run", settings_of())
    job.out.mkdir()
    old = {"policy": "elsewhere/policy", "best_step": 3, "best_em": 0.5, "last_step": 4}
    (job.out / "outcome.json").write_text(json.dumps(old))
    assert train_grpo(job, resume=True) == GrpoOutcome(3, 0.5, 4)


def test_dev_figures_that_leave_questions_out_choose_nothing(folder: Path, tmp_path: Path):
    settings = settings_of(steps=3, save_steps=1, eval_steps=1, keep_checkpoints=5)
    figures = iter([{"em": 0.25}, {"em": 1.0, "unscored": 5.0}, {"unscored": 6.0}, {"em": 0.5}])
    outcome = train_grpo(job_of(folder, tmp_path / "some", settings, evaluate=lambda _: next(figures)))
    assert (outcome.best_step, outcome.best_em) == (3, 0.5)
    job = job_of(folder, tmp_path / "none", settings, evaluate=lambda _: {"unscored": 6.0})
    outcome = train_grpo(job)
    assert (outcome.best_step, outcome.best_em) == (3, None)
    assert (job.layout.policy / "model.safetensors").is_file()


def test_small_updates_are_not_lost_in_sixteen_bits(folder: Path, tmp_path: Path):
    policy = PolicySettings(model=str(folder), device="cpu", dtype="bfloat16")
    before, _ = load_trained(policy, str(folder), None)
    settings = settings_of(steps=2, save_steps=2, eval_steps=2, learning_rate=1e-6)
    after = trained(replace(job_of(folder, tmp_path / "run", settings), policy=policy))
    moved = {name: (after[name] != p).float().mean().item() for name, p in before.named_parameters()}
    assert all(p.dtype == torch.float32 for p in after.values())
    assert sum(moved.values()) / len(moved) > 0.8, moved


def test_under_an_adapter_the_frozen_weights_keep_their_sixteen_bits(folder: Path):
    policy = PolicySettings(model=str(folder), device="cpu", dtype="bfloat16")
    model, _ = load_trained(policy, str(folder), LoraSettings(r=4))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
