"""The worked files of docs/extend.md that take part in training: a credit scheme, and a policy that learns."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from policy_contract import CHECKS
from tiny_job import WORDS, drive, job_of, settings_of

from agent.cluster.identity import code_identity
from agent.cluster.worker import RolloutWorker, WorkerPlan
from agent.config import PolicySettings
from agent.learning.grpo import make_trainer
from agent.learning.importance import Importance
from agent.policies.backends import open_policy, open_trainable
from agent.policies.weights import LiveWeights, send
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from sleuth.errors import ConfigError
from sleuth.trajectories import read_trajectories
from sleuth.types import Question, Sampling

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
BACKEND = "plain_policy:PlainPolicy"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tiny") / "policy"
    build_tiny_policy(made, WORDS, TinySettings(hidden_size=64, layers=2), 0)
    return made


def settings(folder: Path) -> PolicySettings:
    return PolicySettings(model=str(folder), device="cpu", backend=BACKEND)


@pytest.mark.parametrize("name", ["fading_credit.py", "plain_policy.py"])
def test_an_example_stays_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= 60


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_policy_keeps_the_contract(check, folder: Path) -> None:
    check(*open_policy(settings(folder)))


def test_the_policy_samples_every_rollout_with_the_weights_of_its_step(folder: Path, tmp_path: Path) -> None:
    job = replace(job_of(folder, tmp_path / "run", settings_of(steps=3, save_steps=3, eval_steps=1)))
    versions = []
    job = replace(job, policy=settings(folder), evaluate=lambda d: versions.append(d.policy.version) or {"em": 0.0})
    trainer = make_trainer(job)
    trainer.train()
    trainer.source.close()
    assert versions == [0, 1, 2, 3]
    lines = [line for line in trainer.state.log_history if "reward" in line]
    assert all(line["check/logprob_gap"] < 1e-4 for line in lines) and any(line["grad_norm"] > 0 for line in lines)
    for row in read_trajectories(job.out / "trajectories"):
        assert {turn.generation.policy_version for turn in row.trajectory.turns} == {row.origin.step}


def test_the_policy_plays_on_a_worker(folder: Path) -> None:
    worker = RolloutWorker(
        WorkerPlan(partial(open_trainable, settings(folder), str(folder), None), None, drive, code_identity())
    )
    model = worker._policy._model
    moved = {name: value + 0.01 for name, value in model.state_dict().items()}
    other = type(model)(model.config)
    other.load_state_dict(moved)
    played = worker.play(send(LiveWeights(7, other)), [Question("q", "the city ?", ("Paris",))], Sampling(), [1])
    assert {turn.generation.policy_version for t in played.trajectories for turn in t.turns} == {7}
    assert all(torch.equal(value, moved[name]) for name, value in model.state_dict().items())


def test_a_policy_without_load_is_refused_when_it_is_opened(folder: Path, tmp_path: Path) -> None:
    fixed = PolicySettings(model=str(folder), backend=f"{__name__}:fixed")
    with pytest.raises(ConfigError, match=r"cannot give new weights.*load\(weights\)"):
        make_trainer(replace(job_of(folder, tmp_path / "run", settings_of()), policy=fixed))


def fixed(_settings, codec):
    from agent.policies.scripted import ScriptedPolicy

    return ScriptedPolicy(codec, lambda *_: "<answer> Paris </answer>")


def test_the_credit_scheme_reaches_the_loss_token_by_token(folder: Path, tmp_path: Path) -> None:
    credit = {"kind": "fading_credit:FadingCredit", "options": {"fade": 0.5}}
    job = job_of(folder, tmp_path / "run", settings_of(credit=credit, loss="dapo"))
    trainer = make_trainer(job)
    inputs = trainer._generate_and_score_completions([{"prompt": str(i // 3)} for i in range(6)])
    mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    advantages = inputs["advantages"]
    assert advantages.shape == mask.shape and (advantages[~mask] == 0).all()
    several = 0
    for row, scored in zip(advantages, read_trajectories(job.out / "trajectories"), strict=True):
        rows, turns = row[row != 0].tolist(), scored.trajectory.turns
        if not rows:
            continue
        by_turn, start = [], 0
        for turn in turns:
            by_turn.append(rows[start : start + len(turn.generation.token_ids)])
            start += len(turn.generation.token_ids)
        assert start == len(rows) and all(len(set(values)) == 1 for values in by_turn)
        assert all(later[0] == 2 * earlier[0] for earlier, later in pairwise(by_turn))
        several += len(turns) > 1
    assert several
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(trainer.model, inputs).backward()
    trainer.importance = Importance(2.0)  # weights of tokens multiply advantages of tokens
    trainer._compute_loss(trainer.model, inputs)
