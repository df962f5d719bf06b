"""vLLM as the policy, against the transformers backend: same tokens' log-probs before and after weights change."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from policy_contract import CHECKS, SAMPLED, STOP

from agent.policies.probe import make_probe, probe_tokens
from agent.policies.transformers_policy import TransformersPolicy
from agent.policies.weights import LiveWeights, send
from sleuth.errors import PolicyError
from sleuth.types import Request, Sampling

TEXTS = [
    "Question : what is the capital of France ?",
    "Question : London ?",
    "the city of the city is it , who found ?",
    "found " * 70,
]


def requests(codec, seed=0, tokens=24):
    prompts = [codec.encode(text, trusted=True) for text in TEXTS]
    return [Request(f"q{i}#0", p, tokens, seed + i) for i, p in enumerate(prompts)]


def recomputed(model, request, generation, temperature):
    ids = torch.tensor([[*request.prefix, *generation.token_ids]])
    with torch.no_grad():
        logps = (model(ids).logits[0, :-1] / (temperature or 1.0)).log_softmax(-1)
    return logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[-len(generation.token_ids) :].tolist()


def assert_agrees(policy, model, codec, sampling=SAMPLED, seed=0):
    """The policy's log-probs are those that the trainer works out for the same tokens."""
    batch = requests(codec, seed)
    done = policy.generate(batch, sampling)
    for request, generation in zip(batch, done, strict=True):
        assert len(generation.logprobs) == len(generation.token_ids) > 0
        expected = recomputed(model, request, generation, sampling.temperature)
        assert list(generation.logprobs) == pytest.approx(expected, abs=1e-4)
    return done


@pytest.fixture
def changed(tiny):
    """The trainer after an update of every weight, the tied head among them; put back afterwards."""
    model, _ = tiny
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator) * parameter.std().nan_to_num(0.1))
    model.before = before
    yield model
    model.load_state_dict(before)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_logprobs_are_those_of_transformers(vllm_policy, tiny, temperature):
    assert_agrees(vllm_policy, *tiny, Sampling(temperature, stop=STOP))


def test_greedy_says_the_same_as_transformers(vllm_policy, tiny):
    model, codec = tiny
    greedy = Sampling(0.0, stop=STOP)
    ours, theirs = (
        vllm_policy.generate(requests(codec), greedy),
        TransformersPolicy(model, codec).generate(requests(codec), greedy),
    )
    assert [g.token_ids for g in ours] == [g.token_ids for g in theirs]
    assert [g.finish_reason for g in ours] == [g.finish_reason for g in theirs]


@pytest.mark.parametrize("kind", ["vllm_policy", "async_policy"])
def test_an_update_changes_logprobs_head_and_cached_prefixes(kind, request, tiny, changed):
    policy = request.getfixturevalue(kind)
    _, codec = tiny
    assert changed.lm_head.weight is changed.get_input_embeddings().weight
    policy.generate(requests(codec), SAMPLED)  # leaves prefixes of the old weights in the cache
    probe = make_probe(changed, probe_tokens(codec))
    assert policy.gap(probe) > 0.03
    policy.load(LiveWeights(policy.version + 1, changed, probe_tokens(codec)))
    done = assert_agrees(policy, changed, codec)
    assert {g.policy_version for g in done} == {policy.version}
    changed.load_state_dict(changed.before)
    policy.load(send(LiveWeights(policy.version + 1, changed)))


@pytest.mark.parametrize("kind", ["vllm_policy", "async_policy"])
def test_weights_that_are_not_the_trainers_are_not_published(kind, request, tiny):
    policy = request.getfixturevalue(kind)
    model, codec = tiny
    version = policy.version
    sound = send(LiveWeights(version + 1, model, probe_tokens(codec)))
    assert sound.tied.pop("lm_head.weight")
    # What a tied head that stays behind would look like.
    head = sound.arrays["model.embed_tokens.weight"] * 1.1
    broken = replace(
        sound,
        arrays={**sound.arrays, "lm_head.weight": head},
        types={**sound.types, "lm_head.weight": "float32"},
    )
    with pytest.raises(PolicyError, match="differ from the trainer"):
        policy.load(broken)
    assert policy.version == version
    with pytest.raises(PolicyError, match="failed their check"):
        policy.generate(requests(codec), SAMPLED)
    assert "lm_head.weight" not in sound.tensors()
    policy.load(sound)
    assert policy.version == version + 1
    assert_agrees(policy, model, codec)


def test_a_row_alone_equals_the_same_row_in_a_batch(vllm_policy, tiny):
    _, codec = tiny
    together = vllm_policy.generate(requests(codec), SAMPLED)
    assert len({g.token_ids for g in together}) > 1
    for request, expected in zip(requests(codec), together, strict=True):
        alone = vllm_policy.generate([request], SAMPLED)[0]
        assert alone.token_ids == expected.token_ids
        assert alone.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


@pytest.mark.parametrize("kind", ["vllm_policy", "async_policy"])
def test_more_prompt_tokens_than_a_step_takes(kind, request, tiny):
    model, codec = tiny
    policy = request.getfixturevalue(kind)
    batch = [Request(f"q{i}#0", codec.encode("found the city " * (200 + i)), 4, i) for i in range(16)]
    done = policy.generate(batch, SAMPLED)
    assert all(g.token_ids for g in done)
    for request_, generation in zip(batch[::5], done[::5], strict=True):
        expected = recomputed(model, request_, generation, 1.0)
        assert list(generation.logprobs) == pytest.approx(expected, abs=1e-4)


def test_seeds_decide(vllm_policy, tiny):
    _, codec = tiny
    first, again, other = (vllm_policy.generate(requests(codec, seed), SAMPLED) for seed in (3, 3, 4))
    assert [g.token_ids for g in first] == [g.token_ids for g in again]
    assert [g.token_ids for g in first] != [g.token_ids for g in other]
    large = [Request("q#0", requests(codec)[0].prefix, 8, 2**63 - 1)]
    assert vllm_policy.generate(large, SAMPLED) == vllm_policy.generate(large, SAMPLED)


def test_prefixes_cached_over_turns_change_nothing(vllm_policy, tiny):
    model, codec = tiny
    batch = requests(codec)
    for _ in range(3):
        done = vllm_policy.generate(batch, SAMPLED)
        for request, generation in zip(batch, done, strict=True):
            assert list(generation.logprobs) == pytest.approx(
                recomputed(model, request, generation, SAMPLED.temperature), abs=1e-4
            )
        batch = [
            Request(r.episode, [*r.prefix, *g.token_ids, *codec.encode("the city")], 24, r.seed + 9)
            for r, g in zip(batch, done, strict=True)
        ]


def test_async_equals_sync(async_policy, vllm_policy, tiny):
    _, codec = tiny

    async def each():
        return await asyncio.gather(*(async_policy.generate_one(r, SAMPLED) for r in requests(codec)))

    expected = vllm_policy.generate(requests(codec), SAMPLED)
    for done in (asyncio.run(each()), asyncio.run(each()), async_policy.generate(requests(codec), SAMPLED)):
        assert [g.token_ids for g in done] == [g.token_ids for g in expected]
        assert [g.finish_reason for g in done] == [g.finish_reason for g in expected]


@pytest.mark.parametrize("kind", ["vllm_policy", "async_policy"])
def test_tokens_stream_as_they_are_sampled(kind, request, tiny):
    policy = request.getfixturevalue(kind)
    _, codec = tiny
    seen: dict[str, list[int]] = {}
    done = policy.generate(requests(codec), SAMPLED, on_token=lambda e, t, _: seen.setdefault(e, []).append(t))
    assert seen == {f"q{i}#0": list(g.token_ids) for i, g in enumerate(done)}
    assert [g.token_ids for g in done] == [g.token_ids for g in policy.generate(requests(codec), SAMPLED)]


def test_an_interrupt_leaves_nothing_running(vllm_policy, tiny):
    _, codec = tiny

    def interrupt(*_token):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vllm_policy.generate(requests(codec), SAMPLED, on_token=interrupt)
    assert len(vllm_policy.generate(requests(codec), SAMPLED)) == len(TEXTS)


def test_a_transcript_longer_than_the_engine_takes_is_refused_in_one_line(vllm_policy, tiny):
    _, codec = tiny
    too_long = Request("q#0", codec.encode("found " * 1100), 4)
    with pytest.raises(PolicyError, match="refuses a request"):
        vllm_policy.generate([too_long], SAMPLED)
    assert vllm_policy.generate(requests(codec), SAMPLED)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", ["vllm_policy", "async_policy"])
def test_vllm_keeps_the_contract_of_policies(kind, check, request, tiny):
    check(request.getfixturevalue(kind), tiny[1])


def test_what_the_engine_cannot_do_is_said_in_one_line(vllm_policy, tiny):
    with pytest.raises(PolicyError, match="temperature must be in"):
        vllm_policy.generate(requests(tiny[1]), Sampling(8.0))
