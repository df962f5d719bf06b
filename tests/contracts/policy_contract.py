"""The checks that every policy must pass, wherever its engine lives, and a policy on disk that says many things."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.codec import HFCodec
from agent.config import PolicySettings
from agent.policies.loading import load_policy_model
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from sleuth.protocols import Policy
from sleuth.types import Generation, Request, Sampling

STOP = ("</search>", "</answer>")
SAMPLED = Sampling(1.0, stop=STOP)
TEXTS = ["Question : what is the capital of France ?", "Paris ?", "who found the city ?"]
WORDS = [
    *("Question", ":", "?", ".", ",", "Paris", "London", "capital", "of", "France", "what", "is", "the", "city"),
    *("Need", "who", "found", "it", "##s"),
]


def build_undecided_policy(folder: Path, settings: TinySettings) -> None:
    """An untrained policy whose distributions are nearly flat, so that different seeds say different things."""
    build_tiny_policy(folder, WORDS, settings, 0)
    model, _ = load_policy_model(PolicySettings(model=str(folder), device="cpu"), str(folder))
    model.model.norm.weight.data.mul_(0.1)
    model.save_pretrained(folder)


def batch_of(codec: HFCodec, tokens: int = 12) -> list[Request]:
    return [Request(f"q{i}#0", codec.encode(text), tokens, 7 + i) for i, text in enumerate(TEXTS)]


def check_shape(policy: Policy, codec: HFCodec) -> None:
    """One generation a request, in order, within its budget, ended for a reason that its tokens show."""
    assert isinstance(policy, Policy)
    done = policy.generate(batch_of(codec), SAMPLED)
    assert len(done) == len(TEXTS)
    for request, generation in zip(batch_of(codec), done, strict=True):
        assert isinstance(generation, Generation)
        assert 0 < len(generation.token_ids) <= request.max_new_tokens
        assert len(generation.logprobs) == (len(generation.token_ids) if policy.trainable else 0)
        assert all(value <= 1e-6 for value in generation.logprobs)
        text = codec.decode(generation.token_ids)
        assert (generation.finish_reason == "stop") == any(stop in text for stop in STOP)
        if generation.finish_reason == "length":
            assert len(generation.token_ids) == request.max_new_tokens
    assert {g.policy_version for g in done} == {policy.version}


def check_reproducible(policy: Policy, codec: HFCodec) -> None:
    """The same seed gives the same tokens, whatever else is in the batch and whatever was released."""
    together = policy.generate(batch_of(codec), SAMPLED)
    policy.release([request.episode for request in batch_of(codec)])
    for index in (2, 0, 1):
        request = batch_of(codec)[index]
        alone = policy.generate([request], SAMPLED)[0]
        assert alone.token_ids == together[index].token_ids
        assert alone.logprobs == pytest.approx(together[index].logprobs, abs=1e-4)
        policy.release([request.episode])


def check_streams(policy: Policy, codec: HFCodec) -> None:
    """Every token is told once, in order, with its episode."""
    seen: dict[str, list[int]] = {}
    done = policy.generate(batch_of(codec), SAMPLED, on_token=lambda e, t, _: seen.setdefault(e, []).append(t))
    assert seen == {f"q{i}#0": list(g.token_ids) for i, g in enumerate(done)}


def check_release(policy: Policy, codec: HFCodec) -> None:
    policy.release(["never seen", *(r.episode for r in batch_of(codec))])
    policy.release([])


CHECKS = [check_shape, check_reproducible, check_streams, check_release]
