"""A warm start of a policy that is an adapter already: its own is trained on, or merged before a new one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_job import QUESTIONS, WORDS

from agent.config import PolicySettings, WarmstartSettings
from agent.policies.adapters import peft_config
from agent.policies.loading import adapter_base, load_policy_model
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from agent.warmstart import warm_start
from hub.config import LoraSettings
from sleuth.sinks import MultiSink
from sleuth.types import Segment, Trajectory


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import get_peft_model

    folder = tmp_path_factory.mktemp("tiny")
    build_tiny_policy(folder / "base", WORDS, TinySettings(hidden_size=64, layers=2), 0)
    model, codec = load_policy_model(PolicySettings(model=str(folder / "base")), str(folder / "base"))
    get_peft_model(model, peft_config(LoraSettings(r=2))).save_pretrained(folder / "adapter")
    codec.tokenizer.save_pretrained(folder / "adapter")
    return folder / "adapter"


@pytest.mark.parametrize("lora", [None, LoraSettings(r=4)], ids=["its own", "a new one"])
def test_an_adapter_is_warm_started_into_a_whole_model(adapter: Path, tmp_path: Path, lora: LoraSettings | None):
    said = [
        Trajectory(q, (Segment("prompt", (4, 5)), Segment("policy", (6, 7), (0.0, 0.0))), (), "answer")
        for q in QUESTIONS
    ]
    policy = PolicySettings(model=str(adapter), device="cpu")
    settings = WarmstartSettings(steps=2, batch_size=2, learning_rate=0.01, schedule="constant", lora=lora)
    out = warm_start(
        settings, policy, str(adapter), said, tmp_path / "out", seed=0, sink=MultiSink([]), work=tmp_path / "work"
    )
    assert adapter_base(str(out)) is None
    learned = dict(load_policy_model(PolicySettings(model=str(out)), str(out))[0].named_parameters())
    base = str(adapter.with_name("base"))
    before = dict(load_policy_model(PolicySettings(model=base), base)[0].named_parameters())
    assert learned.keys() == before.keys()
    assert any(not torch.equal(learned[name], before[name]) for name in before)
