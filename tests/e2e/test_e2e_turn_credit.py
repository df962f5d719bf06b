"""Credit by turns in training: who judges with which weights, what the tokens get, what is kept and logged."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_job import WORDS, drive_searching, job_of, settings_of

from agent.cluster.controller import Controller
from agent.cluster.identity import code_identity
from agent.cluster.interface import Needs
from agent.cluster.local import LocalCluster
from agent.cluster.pool import Patience
from agent.cluster.source import ClusterSource
from agent.cluster.worker import RolloutWorker, WorkerPlan
from agent.config import PolicySettings
from agent.learning.answer_logprobs import AnswerReader
from agent.learning.credit.assign import assign, mean_advantage
from agent.learning.credit.information_gain import InformationGain
from agent.learning.grpo import make_trainer
from agent.learning.rollouts import cut
from agent.policies.backends import open_trainable
from agent.policies.loading import load_policy_model
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from hub.config import LoraSettings
from sleuth.trajectories import read_trajectories

CREDIT = {"kind": "turns", "score": "information_gain", "gamma": 0.9, "weight": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("tiny") / "policy"
    build_tiny_policy(made, WORDS, TinySettings(hidden_size=64, layers=2), 0)
    return made


def trained(folder: Path, out: Path, make_source=None, **more):
    """The trainer after its steps, its log lines, and the trajectories it kept, by step."""
    settings = settings_of(credit=CREDIT, steps=2, eval_steps=2, save_steps=2, **more)
    trainer = make_trainer(job_of(folder, out, settings, make_driver=drive_searching, make_source=make_source))
    trainer.train()
    rows = list(read_trajectories(out / "trajectories"))
    kept = [[row for row in rows if row.origin.step == step] for step in range(2)]
    return settings, [line for line in trainer.state.log_history if "reward" in line], kept


def judged_by(model: Path, rows):
    """What the policy in ``model`` thinks of the turns of ``rows``."""
    weights, codec = load_policy_model(PolicySettings(model=str(model), device="cpu"), str(model))
    environment = drive_searching(None, codec).environment()
    answers = AnswerReader(codec, environment, rows=3).of(weights)
    return InformationGain().score([row.trajectory for row in rows], answers)


@pytest.mark.parametrize("lora", [None, LoraSettings(r=4)], ids=["full", "lora"])
def test_the_policy_judges_its_own_turns_before_it_learns_from_them(folder, tmp_path, lora):
    settings, lines, kept = trained(folder, tmp_path, lora=lora)
    for found, wanted in zip(kept[0], judged_by(folder, kept[0]), strict=True):
        assert found.turn_scores[0] == pytest.approx(wanted[0], abs=1e-4)
        assert found.turn_scores[0] is not None and set(found.turn_scores[1:]) <= {None}
    for line, rows in zip(lines, kept, strict=True):
        wanted = assign(settings.credit.open(), cut(rows, settings.group_size))
        for found, advantages in zip(rows, [row for group in wanted for row in group], strict=True):
            assert found.origin.advantage == mean_advantage(advantages)
            lengths = found.trajectory.turn_lengths
            kept_row = found.origin.advantages or (found.origin.advantage,) * len(lengths)
            by_token = [value for value, length in zip(kept_row, lengths, strict=True) for _ in range(length)]
            assert by_token == pytest.approx(advantages)
        assert any(found.origin.advantages for found in rows)
        stages = [line[f"time/{stage}"] for stage in ("generate", "retrieve", "score", "credit", "reference", "update")]
        assert line["time/credit"] > 0 and sum(stages) == pytest.approx(line["time/step"], rel=0.05)
        assert line["turns/judged"] == 1.0


@pytest.mark.parametrize("ahead", [0, 1])
def test_on_a_cluster_the_trainer_judges_what_the_workers_played(folder, tmp_path, ahead):
    cluster = LocalCluster()
    policy = PolicySettings(model=str(folder), device="cpu")
    plan = WorkerPlan(
        partial(open_trainable, policy, str(folder), None), torch.get_num_threads(), drive_searching, code_identity()
    )

    def make(_model, codec, rollouts, upcoming):
        actors = [cluster.spawn("worker 0", lambda: RolloutWorker(plan), Needs("worker"))]
        template = drive_searching(None, codec)
        control = Controller(actors, template, Patience(60.0, 1, 60.0), keep=2 + ahead)
        return ClusterSource(control, template, cluster.put, rollouts, upcoming, ahead=ahead, updates=1)

    try:
        _, lines, kept = trained(folder, tmp_path, make)
    finally:
        cluster.close()
    assert [line["cluster/staleness"] for line in lines] == [0, ahead]
    assert all(line["time/credit"] > 0 for line in lines)
    for found, wanted in zip(kept[0], judged_by(folder, kept[0]), strict=True):
        assert found.turn_scores[0] == pytest.approx(wanted[0], abs=1e-4)
    before = judged_by(folder, kept[1])
    moved = [abs(found.turn_scores[0] - wanted[0]) for found, wanted in zip(kept[1], before, strict=True)]
    assert max(moved) > 1e-3, "judged with the weights after the first update, whoever sampled"
