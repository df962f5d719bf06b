"""The transformers policy: what is in the batch, and what is cached, must not change what comes out."""

from __future__ import annotations

import pytest
import torch

from agent.policies.sampler import pick, uniforms
from agent.policies.transformers_policy import TransformersPolicy
from agent.policies.weights import LiveWeights
from sleuth.types import Request, Sampling

STOP = ("</search>", "</answer>")
SAMPLED = Sampling(1.0, stop=STOP)
TEXTS = [
    "Question : what is the capital of France ?",
    "Question : London ?",
    "the city of the city is it , who found ?",
]


def requests(codec, seed=0, tokens=20, extra=()):
    prompts = [codec.encode(text, trusted=True) for text in TEXTS]
    return [Request(f"q{i}#0", [*p, *extra], tokens, seed + i) for i, p in enumerate(prompts)]


@pytest.mark.parametrize("sampling", [SAMPLED, Sampling(0.7, stop=STOP), Sampling(0.0, stop=STOP)])
def test_a_row_alone_equals_the_same_row_in_a_batch(tiny, sampling):
    model, codec = tiny
    together = TransformersPolicy(model, codec).generate(requests(codec), sampling)
    for request, expected in zip(requests(codec), together, strict=True):
        alone = TransformersPolicy(model, codec).generate([request], sampling)[0]
        assert alone.token_ids == expected.token_ids
        assert alone.logprobs == pytest.approx(expected.logprobs, abs=1e-4)


def test_small_batches_equal_one_large_one(tiny):
    model, codec = tiny
    large = TransformersPolicy(model, codec).generate(requests(codec), SAMPLED)
    small = TransformersPolicy(model, codec, max_rows=1).generate(requests(codec), SAMPLED)
    assert [g.token_ids for g in small] == [g.token_ids for g in large]


def test_a_kept_cache_changes_nothing_over_three_turns(tiny):
    model, codec = tiny
    kept, fresh = TransformersPolicy(model, codec), TransformersPolicy(model, codec, keep_cache=False)
    batch = requests(codec)
    for turn in range(3):
        a, b = kept.generate(batch, SAMPLED), fresh.generate(batch, SAMPLED)
        assert [g.token_ids for g in a] == [g.token_ids for g in b]
        for x, y in zip(a, b, strict=True):
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)
        inserted = codec.encode("the city " * (turn + 1), trusted=True)
        batch = [
            Request(r.episode, [*r.prefix, *g.token_ids, *inserted[i:]], 20, r.seed + 10)
            for i, (r, g) in enumerate(zip(batch, a, strict=True))
        ][: 3 - turn]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_are_those_of_the_distribution_sampled_from(tiny, temperature):
    model, codec = tiny
    for request in requests(codec):
        out = TransformersPolicy(model, codec).generate([request], Sampling(temperature, stop=STOP))[0]
        ids = torch.tensor([[*request.prefix, *out.token_ids]])
        with torch.no_grad():
            logps = (model(ids).logits[0, :-1] / temperature).log_softmax(-1)
        expected = logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[-len(out.token_ids) :]
        assert list(out.logprobs) == pytest.approx(expected.tolist(), abs=1e-4)


def test_greedy_equals_transformers_generate(tiny):
    model, codec = tiny
    request = requests(codec)[0]
    ours = TransformersPolicy(model, codec).generate([request], Sampling(0.0))[0]
    theirs = model.generate(torch.tensor([request.prefix]), max_new_tokens=20, do_sample=False, pad_token_id=0)
    assert list(ours.token_ids) == theirs[0, len(request.prefix) :].tolist()


@pytest.mark.parametrize("sampling", [SAMPLED, Sampling(0.0, stop=STOP)], ids=["sampled", "greedy"])
def test_the_generation_config_of_a_model_changes_nothing_but_its_end_tokens(tiny, monkeypatch, sampling):
    model, codec = tiny
    before = TransformersPolicy(model, codec).generate(requests(codec), sampling)
    own = {"repetition_penalty": 3.0, "top_k": 1, "top_p": 0.1, "min_p": 0.9, "do_sample": True, "temperature": 0.1}
    for name, value in own.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert TransformersPolicy(model, codec).generate(requests(codec), sampling) == before


def test_each_row_stops_on_its_own_and_carries_the_whole_last_token(tiny, monkeypatch):
    model, codec = tiny
    closing = codec.encode("</search>", trusted=True)
    script = {0: [*codec.encode("Paris", trusted=True), *closing], 1: codec.encode("the city of the", trusted=True)}
    steps = iter(range(10))

    def scripted(logits, draws, sampling):
        step = next(steps)
        tokens = torch.tensor([script[row][min(step, len(script[row]) - 1)] for row in range(len(logits))])
        return tokens, torch.zeros(len(logits))

    monkeypatch.setattr("agent.policies.transformers_policy.pick", scripted)
    batch = [Request("a#0", [5, 6], 4), Request("b#0", [5, 6, 7], 4)]
    first, second = TransformersPolicy(model, codec).generate(batch, SAMPLED)
    assert list(first.token_ids) == script[0] and first.finish_reason == "stop"
    assert len(second.token_ids) == 4 and second.finish_reason == "length"


def test_new_weights_drop_what_was_cached(tiny):
    model, codec = tiny
    policy = TransformersPolicy(model, codec)
    first = policy.generate(requests(codec), SAMPLED)
    embedding = model.get_input_embeddings().weight
    before = embedding.detach().clone()
    try:
        with torch.no_grad():
            embedding.mul_(1.5)
        policy.load(LiveWeights(1, model))
        batch = [
            Request(r.episode, [*r.prefix, *g.token_ids, 5], 20, r.seed)
            for r, g in zip(requests(codec), first, strict=True)
        ]
        again = policy.generate(batch, SAMPLED)
        assert [g.policy_version for g in again] == [1, 1, 1]
        expected = TransformersPolicy(model, codec).generate(batch, SAMPLED)
        assert [g.token_ids for g in again] == [g.token_ids for g in expected]
    finally:
        with torch.no_grad():
            embedding.copy_(before)


def test_tokens_stream_as_they_are_sampled(tiny):
    model, codec = tiny
    seen: dict[str, list[int]] = {}
    policy = TransformersPolicy(model, codec)
    done = policy.generate(requests(codec), SAMPLED, on_token=lambda e, t, _: seen.setdefault(e, []).append(t))
    assert seen == {f"q{i}#0": list(g.token_ids) for i, g in enumerate(done)}


def test_sampling_follows_the_distribution():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2, 0.0]])).expand(20_000, -1)
    draws = torch.from_numpy(uniforms(range(20_000), 1))[:, 0]
    tokens, logprobs = pick(logits, draws, Sampling(1.0))
    shares = torch.bincount(tokens, minlength=4) / len(tokens)
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.015)
    assert logprobs.exp()[tokens == 1][0].item() == pytest.approx(0.3, abs=1e-5)


def test_top_p_keeps_the_nucleus_and_renormalises():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(2_000, -1)
    tokens, logprobs = pick(logits, torch.from_numpy(uniforms(range(2_000), 1))[:, 0], Sampling(1.0, top_p=0.7))
    assert set(tokens.tolist()) == {0, 1}
    assert logprobs.exp()[tokens == 0][0].item() == pytest.approx(0.5 / 0.8, abs=1e-5)
