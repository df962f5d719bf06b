"""Training on a cluster: the same parameters as one process, bounded staleness, and a corrected loss."""

from __future__ import annotations

import math
import pickle
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_job import WORDS, drive, job_of, settings_of

from agent.cluster.controller import Controller
from agent.cluster.identity import code_identity
from agent.cluster.interface import Needs
from agent.cluster.local import LocalCluster
from agent.cluster.pool import Patience
from agent.cluster.source import ClusterSource
from agent.cluster.worker import RolloutWorker, WorkerPlan
from agent.config import GrpoSettings, PolicySettings
from agent.learning.grpo import make_trainer
from agent.learning.importance import Importance
from agent.policies.backends import open_trainable
from agent.policies.loading import load_policy_model
from agent.policies.weights import LiveWeights, put_into, send
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from hub.config import LoraSettings
from sleuth.errors import PolicyError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiny") / "policy"
    build_tiny_policy(made, WORDS, TinySettings(hidden_size=64, layers=2), 0)
    return made


def trainer_of(folder: Path, out: Path, settings: GrpoSettings, make_source=None):
    return make_trainer(job_of(folder, out, settings, make_source=make_source))


def source_on(cluster: LocalCluster, folder: Path, settings: GrpoSettings, workers: int, ahead: int):
    policy = PolicySettings(model=str(folder), device="cpu")
    plan = WorkerPlan(
        partial(open_trainable, policy, str(folder), settings.lora), torch.get_num_threads(), drive, code_identity()
    )

    def make(_model, codec, rollouts, upcoming):
        actors = [cluster.spawn(f"worker {i}", lambda: RolloutWorker(plan), Needs("worker")) for i in range(workers)]
        template = drive(None, codec)
        control = Controller(actors, template, Patience(60.0, 1, 60.0), keep=2 + ahead)
        return ClusterSource(control, template, cluster.put, rollouts, upcoming, ahead=ahead, updates=1)

    return make


def learned(folder: Path, out: Path, workers: int = 0, ahead: int = 0, **more):
    """Parameters after four steps, and every log line; ``workers`` 0 is one process without a cluster."""
    settings = settings_of(**more)
    cluster = LocalCluster()
    try:
        make = source_on(cluster, folder, settings, workers, ahead) if workers else None
        trainer = trainer_of(folder, out, settings, make)
        trainer.train()
    finally:
        cluster.close()
    parameters = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    return parameters, [line for line in trainer.state.log_history if "reward" in line]


@pytest.mark.parametrize("lora", [None, LoraSettings(r=4)], ids=["full", "lora"])
def test_one_worker_gives_the_parameters_of_one_process(folder, tmp_path, lora):
    alone, _ = learned(folder, tmp_path / "alone", lora=lora)
    apart, lines = learned(folder, tmp_path / "apart", workers=1, lora=lora)
    assert alone.keys() == apart.keys()
    start = dict(load_policy_model(PolicySettings(model=str(folder)), str(folder))[0].named_parameters())
    assert lora or any(not torch.equal(start[name], alone[name]) for name in alone)
    assert [name for name in alone if not torch.equal(alone[name], apart[name])] == []
    assert all(line["cluster/staleness"] == 0 for line in lines)
    assert all(line["check/logprob_gap"] < 1e-4 for line in lines)


def test_two_workers_learn_the_same_up_to_rounding(folder, tmp_path):
    alone, one = learned(folder, tmp_path / "alone")
    apart, two = learned(folder, tmp_path / "apart", workers=2)
    assert [line["rollout/policy_tokens"] for line in one] == [line["rollout/policy_tokens"] for line in two]
    assert max((alone[name] - apart[name]).abs().max().item() for name in alone) < 1e-3


@pytest.mark.parametrize("ahead", [1, 2])
def test_rollouts_ahead_are_at_most_so_many_versions_old_and_repeatable(folder, tmp_path, ahead):
    first, lines = learned(folder, tmp_path / "first", workers=1, ahead=ahead)
    assert [line["cluster/staleness"] for line in lines] == [min(step, ahead) for step in range(4)]
    assert lines[0]["importance/max"] == pytest.approx(1.0, abs=1e-4)
    assert any(abs(line["importance/max"] - 1.0) > 1e-3 for line in lines[1:])
    again, _ = learned(folder, tmp_path / "again", workers=1, ahead=ahead)
    assert [name for name in first if not torch.equal(first[name], again[name])] == []


@pytest.fixture(params=["grpo", "dr_grpo", "cispo"])
def batch(request, folder, tmp_path):
    """A trainer that holds a rollout of its own weights."""
    trainer = trainer_of(folder, tmp_path, settings_of(beta=0.0, loss=request.param))
    inputs = trainer._generate_and_score_completions([{"prompt": str(i // 3)} for i in range(6)])
    trainer.current_gradient_accumulation_steps = 1
    assert inputs["advantages"].abs().sum() > 0
    return trainer, inputs


def loss_and_gradient(trainer, inputs, cap):
    trainer.importance = cap and Importance(cap)
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def test_without_staleness_the_corrected_loss_is_the_uncorrected(batch):
    trainer, inputs = batch
    plain, gradient = loss_and_gradient(trainer, inputs, None)
    corrected, corrected_gradient = loss_and_gradient(trainer, inputs, 2.0)
    assert corrected == pytest.approx(plain, abs=1e-5)
    assert torch.allclose(gradient, corrected_gradient, atol=1e-5)


@pytest.mark.parametrize(("shift", "weight"), [(0.1, math.exp(0.1)), (-0.5, math.exp(-0.5)), (5.0, 2.0)])
def test_tokens_of_another_policy_are_weighted_by_the_truncated_ratio(batch, shift, weight):
    trainer, inputs = batch
    _, gradient = loss_and_gradient(trainer, inputs, None)
    older = {**inputs, "sampling_per_token_logps": inputs["sampling_per_token_logps"] - shift}
    _, corrected = loss_and_gradient(trainer, older, 2.0)
    assert torch.allclose(corrected, weight * gradient, atol=1e-4)
    (largest,) = [values["importance/max"][-1] for values in trainer._metrics.values() if values["importance/max"]]
    assert largest == pytest.approx(math.exp(shift), rel=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_arrive_bit_for_bit_and_tied_ones_travel_once(folder, dtype):
    policy = PolicySettings(model=str(folder), device="cpu", dtype=dtype)
    source, _ = load_policy_model(policy, str(folder))
    target, _ = load_policy_model(policy, str(folder))
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(torch.randn_like(parameter))
    weights = pickle.loads(pickle.dumps(send(LiveWeights(3, source))))
    put_into(target, weights)
    state, other = source.state_dict(), target.state_dict()
    assert [name for name in state if not torch.equal(state[name], other[name])] == []
    assert weights.version == 3 and sorted(weights.tensors()) == sorted(state)
    if source.config.tie_word_embeddings:
        assert weights.tied


def test_weights_of_another_model_are_refused(folder, tmp_path):
    build_tiny_policy(tmp_path / "other", WORDS, TinySettings(hidden_size=64, layers=3), 0)
    policy = PolicySettings(model=str(folder), device="cpu")
    source, _ = load_policy_model(policy, str(folder))
    target, _ = load_policy_model(policy, str(tmp_path / "other"))
    with pytest.raises(PolicyError, match="different model"):
        put_into(target, send(LiveWeights(0, source)))
