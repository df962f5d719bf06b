"""What vLLM samples from: the request alone, and for training a nucleus with log-probs of the whole distribution."""

from __future__ import annotations

import pytest
import torch
from policy_contract import STOP
from test_vllm_policy import assert_agrees, requests

from agent.policies.transformers_policy import TransformersPolicy
from sleuth.errors import PolicyError
from sleuth.types import Sampling

NUCLEUS = Sampling(1.0, 0.6, STOP, full_logprobs=True)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_generation_config_changes_nothing(opinionated, tiny, temperature):
    sampling = Sampling(temperature, stop=STOP)
    done = assert_agrees(opinionated, *tiny, sampling)
    if sampling.greedy:
        expected = TransformersPolicy(*tiny).generate(requests(tiny[1]), sampling)
        assert [g.token_ids for g in done] == [g.token_ids for g in expected]
    else:
        assert len({token for g in done for token in g.token_ids}) > 4


def test_a_nucleus_is_sampled_with_the_log_probs_of_the_whole_distribution(opinionated, tiny):
    model, codec = tiny
    done = assert_agrees(opinionated, model, codec, NUCLEUS)
    for request, generation in zip(requests(codec), done, strict=True):
        ids = torch.tensor([[*request.prefix, *generation.token_ids]])
        with torch.no_grad():
            logps = model(ids).logits[0, len(request.prefix) - 1 : -1].log_softmax(-1)
        for row, token in zip(logps, generation.token_ids, strict=True):
            more_likely = row.exp()[row > row[token] + 1e-4].sum()
            assert more_likely < 0.6 + 1e-3


def test_log_probs_that_an_engine_does_not_have_are_refused_in_one_line(opinionated, vllm_policy, tiny):
    for policy, sampling in ((vllm_policy, NUCLEUS), (opinionated, Sampling(0.7, 0.6, STOP, full_logprobs=True))):
        with pytest.raises(PolicyError, match=r"does not report log-probs of the whole.*policy\.vllm\.full_logprobs"):
            policy.generate(requests(tiny[1]), sampling)
