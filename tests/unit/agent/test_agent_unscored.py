"""Rows that could not be scored leave the step to the others, in every loss."""

from __future__ import annotations

import math
from collections import Counter
from typing import get_args

import pytest
import torch
from step_trainer import gradients_of, rows_of, settings_of, steps, trainer_of, with_loss

from agent.config import GrpoSettings
from agent.learning import trainer
from agent.learning import unscored as module
from agent.learning.unscored import SCALE, check_unscored, factor_of, weigh_scored
from sleuth.failures import failure_of, unscored

LOSSES = get_args(GrpoSettings.model_fields["loss"].annotation)
HALF = [1.0, None, 0.0, None, None, 0.5, None, 2.0]


@pytest.fixture(scope="module")
def trainers(tiny_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("step")
    return [
        trainer_of(tiny_folder, out / str(updates), settings_of("grpo", minibatches=updates), rows_of(HALF))
        for updates in (1, 2)
    ]


def scored_alone(made, window):
    """The gradients of a step that has one micro-batch, the rows of ``window`` in which the loss reads tokens."""
    whole = {name: value for name, value in window[0].items() if name not in ("scored", "step_scale")}
    for name, value in whole.items():
        if value.ndim:
            whole[name] = torch.cat([batch[name] for batch in window])
    kept = (whole["completion_mask"] * whole["tool_mask"]).any(dim=1)
    alone = {name: value[kept] if value.ndim else value for name, value in whole.items()}
    accumulated, generated = made.args.gradient_accumulation_steps, made.args.steps_per_generation
    made.current_gradient_accumulation_steps = made.args.steps_per_generation = 1
    alone["num_items_in_batch"] = alone["num_items_in_batch"] * accumulated / generated
    made._compute_loss(made.model, alone).backward()
    made.current_gradient_accumulation_steps, made.args.steps_per_generation = accumulated, generated
    return gradients_of(made)


def mean_of(gradients):
    return {name: sum(g[name] for g in gradients) / len(gradients) for name in gradients[0]}


def expected(made, window):
    """bnpo alone is a mean over micro-batches, of those that have a scored row."""
    filled = [[batch] for batch in window if (batch["completion_mask"] * batch["tool_mask"]).any()]
    return mean_of([scored_alone(made, batch) for batch in (filled if made.loss_type == "bnpo" else [window])])


@pytest.mark.parametrize("loss", LOSSES)
def test_half_the_rows_unscored_leave_every_step_to_the_scored_ones(trainers, loss):
    for made in trainers:
        with_loss(made, settings_of(loss))
        size = made.args.gradient_accumulation_steps
        for place, found in enumerate(steps(made)):
            wanted = expected(made, made._buffered_inputs[place * size : (place + 1) * size])
            assert max(g.abs().max() for g in wanted.values()) > 1e-4
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_take_the_step_of_their_scored_rows_together(trainers, loss):
    """Each process has two of the rollout's micro-batches; gradients are averaged over processes, as DDP does."""
    made = with_loss(trainers[0], settings_of(loss))
    steps(made)  # makes the rollout
    batches = [{k: v for k, v in batch.items() if k != SCALE} for batch in made._buffered_inputs]
    ranks, counts = (batches[:2], batches[2:]), []
    for mine in ranks:
        weigh_scored([dict(batch) for batch in mine], 2, lambda own: counts.append(own) or own)
    for mine in ranks:
        weigh_scored(mine, 2, lambda _own: sum(counts))
    wanted = expected(made, [batch for mine in ranks for batch in mine])
    made.current_gradient_accumulation_steps = 2
    found = []
    for mine in ranks:
        for batch in mine:  # TRL multiplies what is divided by all tokens by the number of processes
            tokens = batch["num_items_in_batch"]
            batch["num_items_in_batch"] = tokens / 2 * made.args.steps_per_generation / 2
            made._compute_loss(made.model, batch).backward()
        found.append(gradients_of(made))
    torch.testing.assert_close(mean_of(found), wanted, rtol=1e-4, atol=5e-6)


def test_factors_by_hand():
    def factors(*rows, accumulated=2, others=0.0):
        made = [{"scored": torch.tensor(row, dtype=torch.bool)} for row in rows]
        weigh_scored(made, accumulated, lambda counts: counts + torch.tensor(others))
        return [batch[SCALE].tolist() for batch in made]

    whole, half, none = (1, 1), (1, 0), (0, 0)
    found = factors(whole, half, none, none, half, none)
    assert found == [pytest.approx(pair) for pair in [(4 / 3, 1)] * 2 + [(1, 1)] * 2 + [(4, 2)] * 2]
    assert factors(half, none, others=[[4.0, 4.0], [2.0, 1.0]]) == [pytest.approx((8 / 5, 2))] * 2  # of two processes
    assert [factor_of(loss, 3.0, 2.0) for loss in ("grpo", "bnpo", "dapo")] == [3.0, 2.0, 1.0]


def test_the_entropy_bonus_is_that_of_the_micro_batches_with_scored_rows(trainers):
    made = with_loss(trainers[0], settings_of("bnpo"))
    made.entropy_coef, made._entropy_bonus_enabled = 0.5, True
    try:
        (found,) = steps(made)
        assert set(made._metrics["train"]["entropy_coef"]) == {0.5}, "what is logged is the setting"
        wanted = expected(made, made._buffered_inputs)
    finally:
        made.entropy_coef, made._entropy_bonus_enabled = 0.0, False
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=5e-6)
    (without,) = steps(with_loss(made, settings_of("bnpo")))
    assert not all(torch.allclose(found[name], without[name], atol=1e-4) for name in found)


def test_a_micro_batch_without_a_scored_row_is_left_out_of_logged_means(trainers, monkeypatch):
    """Counted as 0, it would make the entropy look like a collapse."""
    made = with_loss(trainers[0], settings_of("grpo"))
    monkeypatch.setattr(made.source, "rows", rows_of([1.0, None, None, None, None, None, None, 2.0]))
    made._metrics["train"].clear()
    steps(made)
    empty = [not (batch["completion_mask"] * batch["tool_mask"]).any() for batch in made._buffered_inputs]
    assert 1 < sum(empty) < 4
    for name in ("entropy", "kl", "clip_ratio/region_mean"):
        assert [math.isnan(value) for value in made._metrics["train"][name]] == empty, name
    entropies = [value for value in made._metrics["train"]["entropy"] if not math.isnan(value)]
    made.log({"loss": 0.0})
    assert made.state.log_history[-1]["entropy"] == pytest.approx(sum(entropies) / len(entropies))


def test_the_whole_rollout_scored_changes_no_bit(trainers, monkeypatch):
    made = with_loss(trainers[0], settings_of("grpo"))
    monkeypatch.setattr(made.source, "rows", rows_of([float(row) for row in range(8)]))
    found = steps(made)
    monkeypatch.setattr(trainer, "weigh_scored", lambda *_: None)
    made._step, made._buffered_inputs = 0, None
    (before,), (after,) = found, steps(made)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_share_above_the_limit_ends_the_run_in_one_line():
    rows = [*rows_of([1.0, 0.0]), failed("the reward f1"), failed("the environment")]
    assert check_unscored(rows, 0.5, 3) is None
    error = check_unscored(rows, 0.49, 3)
    assert str(error).startswith(
        "2 of 4 trajectories of step 3 could not be scored (the reward f1: 1, the environment: 1): stopped before"
        " the update (a checkpoint is saved"
    )


def test_questions_to_which_no_reward_applies_do_not_end_a_run():
    assert check_unscored(rows_of([1.0, None, None, None]), 0.5, 0) is None
    error = check_unscored([*rows_of([1.0, None]), failed("the judge"), failed("the judge")], 0.4, 0)
    assert str(error).startswith("2 of 4 trajectories of step 0 could not be scored (the judge: 2)")


def failed(by):
    return unscored(rows_of([None])[0].trajectory, failure_of(by, KeyError("x")))


def test_the_share_is_that_of_all_processes(monkeypatch):
    monkeypatch.setattr(module, "gather_object", lambda mine: [*mine, (4, Counter({"the environment": 4}))])
    assert check_unscored(rows_of([1.0] * 4), 0.5, 0) is None
    assert check_unscored([*rows_of([1.0] * 3), failed("the environment")], 0.5, 0) is not None
