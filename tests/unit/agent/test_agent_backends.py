"""Backends of policies: names, dotted paths, and who may be trained."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agent.config import PolicySettings
from agent.policies.backends import BACKENDS, check_backend, check_trainable, open_trainable
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from sleuth.errors import ConfigError

OUTSIDE = """
class Frozen:
    trainable, version = True, 0
    def __init__(self, settings, codec): pass
    def generate(self, requests, sampling, on_token=None): return []
    def release(self, episodes): pass

class Learns(Frozen):
    def load(self, weights): self.version = weights.version

class Blind(Learns):
    trainable = False

class Strange(Learns):
    def __init__(self): pass

def make(settings, codec): return Frozen(settings, codec)
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "outside_policies.py").write_text(OUTSIDE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "outside_policies", raising=False)
    build_tiny_policy(tmp_path / "tiny", ["Question", "?"], TinySettings(hidden_size=32, layers=2), 0)
    return str(tmp_path / "tiny")


def settings(model: str, backend: str) -> PolicySettings:
    return PolicySettings(model=model, device="cpu", backend=backend)


def test_a_policy_with_load_is_trained_wherever_it_comes_from(model: str) -> None:
    for backend in ("transformers", "outside_policies:Learns"):
        check_trainable(settings(model, backend))
        policy, codec = open_trainable(settings(model, backend), model, None)
        assert (policy.trainable, policy.version) == (True, 0) and codec.encode("?")


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("outside_policies:make", "training cannot give new weights to policy.backend 'outside_policies:make'"),
        ("outside_policies:Blind", "trainable is False"),
        ("outside_policies:Strange", "outside_policies:Strange: .*takes 1 positional argument"),
        ("outside_policies:Absent", "outside_policies has no 'Absent'"),
    ],
)
def test_a_policy_that_cannot_learn_is_one_line(model: str, backend: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        open_trainable(settings(model, backend), model, None)
    assert "\n" not in str(caught.value)


def test_what_cannot_learn_is_known_before_it_is_opened(model: str) -> None:
    assert {name for name, one in BACKENDS.items() if one.trains} == {"transformers", "vllm"}
    for backend in ("openai", "outside_policies:Frozen"):
        with pytest.raises(ConfigError, match=r"cannot give new .*backend transformers, vllm or auto"):
            check_trainable(settings(model, backend))


def test_names_are_checked_without_looking_for_engines() -> None:
    for name in ("auto", *BACKENDS, "anything:There"):
        check_backend(name)
    with pytest.raises(ConfigError, match=r"no policy backend 'vlm' \(did you mean 'vllm'"):
        check_backend("vlm")
