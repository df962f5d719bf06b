"""Whatever stands at a position that the policy did not sample, the step is the same; at one that it did, it stops."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import trl
from step_trainer import OBSERVED, gradients_of, rows_of, settings_of, steps, trainer_of, with_loss
from trl import GRPOTrainer

from agent.config import GrpoSettings, PolicySettings
from agent.learning.importance import Importance
from agent.learning.masked import ReadHead
from agent.policies.loading import load_policy_model
from sleuth.errors import TrainingError

LOSSES = get_args(GrpoSettings.model_fields["loss"].annotation)
BAD = [-torch.inf, torch.inf, torch.nan, 1e30, -1e30]
RECORDED = ("old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps")


@pytest.fixture(scope="module")
def made(tiny_folder, tmp_path_factory):
    """Old log-probs are there, since a rollout takes two steps; importance ratios are truncated at 2."""
    settings, rows = settings_of("grpo", minibatches=2), rows_of([1.0, 0.0, 0.5, 2.0] * 2)
    trainer = trainer_of(tiny_folder, tmp_path_factory.mktemp("step"), settings, rows, importance=Importance(2.0))
    steps(trainer)
    trainer.played = trainer._buffered_inputs
    assert set(RECORDED) < set(trainer.played[0]) and trainer.beta > 0
    return trainer


def absent(batch):
    return ~(batch["completion_mask"] * batch["tool_mask"]).bool()


def step_on(made, batch):
    """The loss of a micro-batch with its gradients."""
    loss = made._compute_loss(made.model, batch)
    loss.backward()
    return loss.detach(), gradients_of(made)


def batch_of(made):
    """The first rows, with policies that have moved apart, so that ratios and KL are no ones and zeros."""
    batch = dict(made.played[0])
    for place, name in enumerate(("old_per_token_logps", "ref_per_token_logps")):
        wave = 0.1 * torch.sin(torch.arange(batch[name].numel()) + place).reshape(batch[name].shape)
        batch[name] = batch[name] + wave
    return batch


def assert_same(found, wanted):
    assert torch.isfinite(wanted[0]) and found[0] == wanted[0]
    assert max(g.abs().max() for g in wanted[1].values()) > 1e-5
    assert all(torch.equal(found[1][name], wanted[1][name]) for name in wanted[1])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_recorded_logprobs_at_masked_positions_are_absent(made, loss, level):
    with_loss(made, settings_of(loss)).importance_sampling_level = level
    batch = batch_of(made)
    assert absent(batch).any()
    wanted = step_on(made, batch)
    for bad in BAD:
        changed = {name: torch.where(absent(batch), bad, batch[name]) for name in RECORDED}
        assert_same(step_on(made, batch | changed), wanted)


def unsampled(ids):
    """Where a completion holds an observation, the end that is put behind an answer, or padding."""
    return (ids >= OBSERVED) | (ids < 5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_policy_s_logprobs_and_entropies_at_masked_positions_are_absent(made, loss, monkeypatch):
    with_loss(made, settings_of(loss))
    batch = batch_of(made)
    theirs = GRPOTrainer._get_per_token_logps_and_entropies
    for bad in [None, *BAD]:

        def poisoned(self, model, ids, mask, keep, *args, bad=bad, **kwargs):
            logps, entropies, auxiliary = theirs(self, model, ids, mask, keep, *args, **kwargs)
            places = unsampled(ids[:, -keep:]) if bad is not None else torch.zeros_like(logps, dtype=torch.bool)
            return torch.where(places, bad or 0.0, logps), torch.where(places, bad or 0.0, entropies), auxiliary

        monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", poisoned)
        made._metrics["train"].clear()
        found = step_on(made, batch)
        metrics = {name: made._metrics["train"][name][-1] for name in ("entropy", "kl", "ratio/max", "importance/max")}
        if bad is None:
            wanted, measured = found, metrics
        assert_same(found, wanted)
        assert metrics == measured


@pytest.mark.parametrize("loss", LOSSES)
def test_a_model_that_overflows_at_masked_positions_learns_the_same(made, loss):
    """Some logits are -inf there, all of them infinite, or none a number."""
    with_loss(made, settings_of(loss))
    batch, seen, values = batch_of(made), [], []

    def note(_module, _args, kwargs):
        seen.append(kwargs["input_ids"])

    def overflow(_module, _args, output):
        ids = seen[-1]
        next_is_unsampled = torch.cat([unsampled(ids[:, 1:]), torch.ones(len(ids), 1, dtype=torch.bool)], dim=1)
        return torch.where(next_is_unsampled.unsqueeze(-1), values[-1] * torch.sign(output), output)

    wanted = step_on(made, batch)
    handles = [
        made.model.model.register_forward_pre_hook(note, with_kwargs=True),
        made.model.model.norm.register_forward_hook(overflow),
    ]
    try:
        for bad in (3e38, torch.inf, torch.nan):
            values.append(bad)
            assert_same(step_on(made, batch), wanted)
    finally:
        for handle in handles:
            handle.remove()
    assert len(seen) == 3


@pytest.mark.parametrize("bad", [-torch.inf, torch.inf, torch.nan])
@pytest.mark.parametrize("whose", ["the policy", "the old policy", "the reference", "the sampler"])
def test_what_is_not_finite_where_the_policy_sampled_stops_the_run(made, whose, bad, monkeypatch):
    for loss in LOSSES:
        with_loss(made, settings_of(loss))
        batch = batch_of(made)
        place = torch.zeros_like(absent(batch))
        place[0, 0] = True
        assert not absent(batch)[0, 0]
        if whose == "the policy":
            theirs = GRPOTrainer._get_per_token_logps_and_entropies

            def poisoned(*args, theirs=theirs, place=place, **kwargs):
                logps, *rest = theirs(*args, **kwargs)
                return (torch.where(place[:, : logps.shape[1]], bad, logps), *rest)

            monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", poisoned)
        else:
            name = dict(zip(("the old policy", "the reference", "the sampler"), RECORDED, strict=True))[whose]
            batch[name] = torch.where(place, bad, batch[name])
        with pytest.raises(TrainingError, match=rf"^{whose} gives a sampled token a log-prob of {bad} at step 0"):
            made._compute_loss(made.model, batch)
        monkeypatch.undo()


class CountedHead:
    """How many positions TRL's chunked head was given, pass by pass."""

    def __init__(self, monkeypatch):
        self.positions = []
        chunked = trl.trainer.utils._ChunkedLogProbFunction
        theirs = chunked.apply

        def counted(states, *rest):
            self.positions.append(states.reshape(-1, states.shape[-1]).shape[0])
            return theirs(states, *rest)

        monkeypatch.setattr(chunked, "apply", counted)


def test_the_head_sees_the_sampled_tokens_alone_in_both_passes(made, monkeypatch):
    with_loss(made, settings_of("grpo"))
    batch = batch_of(made)
    counted = CountedHead(monkeypatch)
    step_on(made, batch)
    sampled = int((~absent(batch)).sum())
    assert counted.positions == [sampled] and sampled < absent(batch).numel()
    counted.positions.clear()
    made._buffered_inputs = None
    made._prepare_inputs(next(iter(made.get_train_dataloader())))
    everything = sum(int((~absent(part)).sum()) for part in made._buffered_inputs)
    assert sum(counted.positions) == 2 * everything  # the old policy's and the reference's


def test_a_warm_start_has_the_loss_and_gradients_of_the_whole_head(tiny_folder, monkeypatch):
    counted = CountedHead(monkeypatch)

    def gradients(head):
        model, _ = load_policy_model(PolicySettings(model=str(tiny_folder), device="cpu"), str(tiny_folder))
        trl.trainer.utils.add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
        if head:
            ReadHead(model)
        ids = torch.randint(5, 60, (3, 12), generator=torch.Generator().manual_seed(1))
        labels = torch.where(torch.arange(12) % 3 == 0, -100, ids)
        labels[1] = -100
        counted.positions.clear()
        out = model(input_ids=ids, labels=labels, fused_lm_head=True)
        out.loss.backward()
        grads = {name: weight.grad for name, weight in model.named_parameters()}
        return out, grads, list(counted.positions)

    (whole, wanted, seen), (read, found, few) = gradients(False), gradients(True)
    assert seen == [3 * 11] and few == [int(whole.label_mask.sum())]
    assert torch.equal(read.label_mask, whole.label_mask) and torch.equal(read.is_top1, whole.is_top1)
    torch.testing.assert_close(read.loss, whole.loss)
    torch.testing.assert_close(read.entropy, whole.entropy)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4)
