"""A tiny policy on disk, made once, and ways to load it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.config import PolicySettings
from agent.policies.loading import load_policy_model
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings

WORDS = [
    *("Question", ":", "?", ".", ",", "Paris", "London", "capital", "of", "France", "what", "is", "the", "city"),
    *("Need", "who", "found", "it", "##s"),
]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "policy"
    build_tiny_policy(folder, WORDS, TinySettings(hidden_size=64, layers=2), 0)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path):
    return load_policy_model(PolicySettings(model=str(tiny_folder), device="cpu"), str(tiny_folder))
