"""Adapters on vLLM: the trainer's low-rank tensors, a new number for every version, log-probs as peft's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from agent.config import PolicySettings
from agent.policies.adapters import peft_config
from agent.policies.loading import load_policy_model
from agent.policies.probe import make_probe, probe_tokens
from agent.policies.transformers_policy import TransformersPolicy
from agent.policies.vllm_policy import open_vllm_policy
from agent.policies.weights import LiveWeights, send
from hub.config import LoraSettings
from sleuth.errors import PolicyError
from sleuth.types import Request, Sampling

SAMPLED = Sampling(1.0, stop=("</search>", "</answer>"))
LORA = LoraSettings(r=4, alpha=16)


@pytest.fixture(autouse=True)
def whole_weights_afterwards(async_policy, tiny):
    yield
    async_policy.load(LiveWeights(async_policy.version + 1, tiny[0]))


@pytest.fixture
def trained(tiny_folder):
    """A model of its own under an adapter that does something."""
    model, _ = load_policy_model(PolicySettings(model=str(tiny_folder), device="cpu"), str(tiny_folder))
    model = get_peft_model(model, peft_config(LORA))
    return disturb(model, 0)


def disturb(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def logprobs_of(model, request, generation):
    ids = torch.tensor([[*request.prefix, *generation.token_ids]])
    with torch.no_grad():
        logps = model(ids).logits[0, :-1].log_softmax(-1)
    return logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[-len(generation.token_ids) :].tolist()


def test_two_versions_of_an_adapter_one_after_the_other(async_policy, trained, tiny):
    plain, codec = tiny
    requests = [Request(f"q{i}#0", codec.encode("who found the city ? " * (i + 1)), 16, i) for i in range(3)]
    tokens = probe_tokens(codec)
    # Rollouts before the first adapter leave the base model's prefixes in the cache.
    async_policy.generate(requests, SAMPLED)
    for version in (10, 11):
        disturb(trained, version)
        probe = make_probe(trained, tokens)
        weights = LiveWeights(version, trained, tokens)
        state = weights.tensors()
        assert all(".default." in name for name in state) and len(state) == 2 * 7 * plain.config.num_hidden_layers
        async_policy.load(weights)
        assert async_policy.gap(probe) < 1e-4
        assert async_policy.gap(make_probe(plain, tokens)) > 1e-2
        done = async_policy.generate(requests, SAMPLED)
        for request, generation in zip(requests, done, strict=True):
            assert generation.policy_version == version
            assert list(generation.logprobs) == pytest.approx(logprobs_of(trained, request, generation), abs=1e-4)
    reference = TransformersPolicy(trained, codec).generate(requests, Sampling(0.0))
    greedy = async_policy.generate(requests, Sampling(0.0))
    assert [g.token_ids for g in greedy] == [g.token_ids for g in reference]


def test_an_adapter_that_differs_from_the_trainers_is_not_published(async_policy, trained, tiny):
    _, codec = tiny
    tokens = probe_tokens(codec)
    sent = send(LiveWeights(20, trained, tokens))
    halved = replace(sent, arrays={name: array * 0.5 for name, array in sent.arrays.items()})
    with pytest.raises(PolicyError, match="differ from the trainer"):
        async_policy.load(halved)
    async_policy.load(LiveWeights(21, trained, tokens))
    assert async_policy.version == 21


def test_whole_weights_end_an_adapter(async_policy, trained, tiny):
    plain, codec = tiny
    async_policy.load(LiveWeights(25, trained))
    probe = make_probe(plain, probe_tokens(codec))
    assert async_policy.gap(probe) > 1e-2
    async_policy.load(LiveWeights(26, plain, probe_tokens(codec)))
    assert async_policy.gap(probe) < 1e-4


def test_an_adapter_with_whole_layers_is_refused(async_policy, tiny_folder):
    model, _ = load_policy_model(PolicySettings(model=str(tiny_folder), device="cpu"), str(tiny_folder))
    config = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(PolicyError, match="low-rank adapters only"):
        async_policy.load(LiveWeights(30, get_peft_model(model, config)))
    before = async_policy.version
    assert async_policy.generate([Request("q#0", [5, 6], 4)], SAMPLED)[0].policy_version == before != 30


def test_an_adapter_may_be_merged_into_the_weights_instead(trained, tiny, tmp_path, settings_of):
    plain, codec = tiny
    tokens = probe_tokens(codec)
    trained.save_pretrained(tmp_path)
    codec.tokenizer.save_pretrained(tmp_path)
    # In a process of its own: a second engine in this one would end the others' groups when it is closed.
    policy, _ = open_vllm_policy(settings_of(tmp_path, asynchronous=True), str(tmp_path))
    assert policy.gap(make_probe(trained, tokens)) < 1e-4
    for version in (10, 11):
        disturb(trained, version)
        policy.load(send(LiveWeights(version, trained, tokens)))  # verified when it is loaded
        assert policy.gap(make_probe(trained, tokens)) < 1e-4 < policy.gap(make_probe(plain, tokens))
    policy.load(LiveWeights(12, plain, tokens))
    assert policy.gap(make_probe(plain, tokens)) < 1e-4
    policy.close()
