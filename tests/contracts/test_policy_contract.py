"""What every policy keeps to. A new one joins by one line in IMPLEMENTATIONS.

vLLM's engines and a server of them pass the same checks in tests/engines, where they are started.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from policy_contract import CHECKS, build_undecided_policy, check_reproducible

from agent.codec import HFCodec
from agent.config import PolicySettings
from agent.policies.loading import load_policy_model
from agent.policies.scripted import ScriptedPolicy
from agent.policies.transformers_policy import TransformersPolicy
from agent.tiny_config import TinySettings
from sleuth.protocols import Policy
from sleuth.types import Generation, Request


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, HFCodec]:
    folder = tmp_path_factory.mktemp("contract") / "policy"
    build_undecided_policy(folder, TinySettings(hidden_size=64, layers=2))
    return load_policy_model(PolicySettings(model=str(folder), device="cpu"), str(folder))


IMPLEMENTATIONS: dict[str, Callable[[Any, HFCodec], Policy]] = {
    "transformers": TransformersPolicy,
    "transformers, no cache": lambda model, codec: TransformersPolicy(model, codec, keep_cache=False),
    "scripted": lambda _, codec: ScriptedPolicy(codec, lambda *_: "<think> Paris </think> <answer> Paris </answer>"),
}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", IMPLEMENTATIONS)
def test_policies_keep_the_contract(kind: str, check: Callable[[Policy, HFCodec], None], loaded: Any) -> None:
    model, codec = loaded
    check(IMPLEMENTATIONS[kind](model, codec), codec)


def test_the_contract_sees_a_policy_that_breaks_it(loaded: Any) -> None:
    """The checks can fail: a policy whose tokens depend on what it was asked before does not pass."""
    model, codec = loaded

    class Forgetful(TransformersPolicy):
        calls = 0

        def generate(self, requests: Any, sampling: Any, on_token: Any = None) -> list[Generation]:
            self.calls += 1
            moved = [Request(r.episode, r.prefix, r.max_new_tokens, r.seed + self.calls) for r in requests]
            return super().generate(moved, sampling, on_token)

    with pytest.raises(AssertionError):
        check_reproducible(Forgetful(model, codec), codec)
