"""Policies and engines of these tests: each engine takes long to start, so each is started once."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from policy_contract import build_undecided_policy

from agent.config import PolicySettings
from agent.policies.config import VllmSettings
from agent.policies.loading import load_policy_model
from agent.tiny_config import TinySettings
from hub.config import LoraSettings

HEADS_OF_32 = TinySettings(hidden_size=128, layers=2)
"""The narrowest attention heads that vLLM's CPU attention takes."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = importlib.util.find_spec("vllm") is None
    here = Path(__file__).parent
    for item in (item for item in items if here in item.path.parents):
        item.add_marker(pytest.mark.vllm)
        item.add_marker(pytest.mark.timeout(1500))
        if missing:
            item.add_marker(pytest.mark.skip(reason="vllm is not installed: make test-vllm"))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "policy"
    build_undecided_policy(folder, HEADS_OF_32)
    return folder


def settings(folder: Path, **own: object) -> PolicySettings:
    own = {"cache_gib": 0.25, "block_size": 32, "max_tokens": 1024, **own}
    return PolicySettings(model=str(folder), device="cpu", max_rows=32, vllm=VllmSettings(**own))


@pytest.fixture(scope="session")
def settings_of():
    return settings


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path):
    """The trainer's side: model and codec."""
    return load_policy_model(PolicySettings(model=str(tiny_folder), device="cpu"), str(tiny_folder))


@pytest.fixture(scope="session")
def vllm_policy(tiny_folder: Path) -> Iterator[object]:
    from agent.policies.vllm_policy import open_vllm_policy

    policy, _ = open_vllm_policy(settings(tiny_folder), str(tiny_folder))
    yield policy
    policy.close()


@pytest.fixture(scope="session")
def async_policy(tiny_folder: Path) -> Iterator[object]:
    """The asynchronous engine, with room for adapters."""
    from agent.policies.vllm_policy import open_vllm_policy

    policy, _ = open_vllm_policy(
        settings(tiny_folder, asynchronous=True, merge_adapters=False), str(tiny_folder), LoraSettings(r=4, alpha=16)
    )
    yield policy
    policy.close()


OWN = {"repetition_penalty": 3.0, "top_k": 2, "top_p": 0.5, "min_p": 0.5, "temperature": 0.3, "do_sample": True}


@pytest.fixture(scope="session")
def opinionated(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A policy whose folder has sampling settings of its own, on an engine that reports whole distributions."""
    from agent.policies.vllm_policy import open_vllm_policy

    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("own") / "policy")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | OWN))
    policy, _ = open_vllm_policy(settings(folder, full_logprobs=True), str(folder))
    yield policy
    policy.close()
