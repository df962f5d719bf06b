"""The OpenAI-compatible policy against vLLM's own server on loopback, with SmolLM2's weights."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import torch
from policy_contract import CHECKS

from agent.config import PolicySettings
from agent.policies.backends import open_policy
from agent.policies.config import OpenAISettings
from agent.policies.loading import load_policy_model, resolve_model
from hub.models import SMOLLM2
from sleuth.errors import PolicyError
from sleuth.types import Request, Sampling

STOP = ("</search>", "</answer>")
KEY = "a key of this test"
START_SECONDS = 1200


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a server, the way the documentation starts one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", resolve_model(SMOLLM2)),
        *("--served-model-name", "smollm2", "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY),
        *("--dtype", "float32", "--max-model-len", "2048", "--enforce-eager", "--max-num-seqs", "16"),
        *("--logprobs-mode", "processed_logprobs", "--no-enable-chunked-prefill"),
        *("--override-generation-config", '{"repetition_penalty": 2.0, "top_k": 2, "min_p": 0.5}'),  # must not matter
    ]
    own = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    own["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process less to wait for
    log = tmp_path_factory.mktemp("server") / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env={**os.environ, **own}, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_until_up(process, port, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_up(process, port: int, log: Path) -> None:
    patient_until = time.monotonic() + START_SECONDS
    while time.monotonic() < patient_until:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            httpx.get(f"http://127.0.0.1:{port}/health").raise_for_status()
            return
        except httpx.HTTPError:
            time.sleep(1)
    raise AssertionError(log.read_text()[-2000:])


@pytest.fixture
def opened(server, monkeypatch):
    monkeypatch.setenv("SERVER_KEY", KEY)

    def opener(**settings):
        there = OpenAISettings(base_url=server, tokenizer=SMOLLM2, key_variable="SERVER_KEY", **settings)
        return open_policy(PolicySettings(backend="openai", model="smollm2", openai=there))

    return opener


@pytest.fixture(scope="module")
def smollm2():
    return load_policy_model(PolicySettings(model=SMOLLM2, device="cpu"), SMOLLM2)[0]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_server_keeps_the_contract_of_policies(opened, check):
    check(*opened())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_and_logprobs_are_those_of_the_weights(opened, smollm2, temperature):
    policy, codec = opened()
    assert policy.trainable
    request = Request("q#0", codec.encode("The capital of France is"), 12, 5)
    done = policy.generate([request], Sampling(temperature))[0]
    ids = torch.tensor([[*request.prefix, *done.token_ids]])
    with torch.no_grad():
        logps = (smollm2(ids).logits[0, :-1] / temperature).log_softmax(-1)
    expected = logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[-len(done.token_ids) :]
    assert list(done.logprobs) == pytest.approx(expected.tolist(), abs=2e-4)


def test_a_stop_string_that_ends_within_a_token_keeps_the_whole_token(opened):
    policy, codec = opened()
    request = Request("q#0", codec.encode("The capital of France is"), 8)
    free = policy.generate([request], Sampling(0.0))[0]
    assert codec.decode(free.token_ids).startswith(" Paris")
    stopped = policy.generate([request], Sampling(0.0, stop=("Par",)))[0]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[:1] and codec.decode(stopped.token_ids) == " Paris"
    assert len(stopped.logprobs) == 1


def test_in_text_the_same_words_come_back_without_logprobs(opened):
    exact, codec = opened()
    text, _ = opened(tokens="never")
    request = Request("q#0", codec.encode("The capital of France is"), 12)
    a, b = (p.generate([request], Sampling(0.0, stop=("\n",)))[0] for p in (exact, text))
    assert not text.trainable and b.logprobs == ()
    assert codec.decode(b.token_ids).strip() == codec.decode(a.token_ids).strip() != ""


def test_errors_of_the_real_server_end_in_one_line(opened, server, monkeypatch):
    policy, codec = opened()
    with pytest.raises(PolicyError, match=r"refuses the request \(status 400\)"):
        policy.generate([Request("q#0", codec.encode("word " * 3000), 8)], Sampling(0.0))
    policy.model = "smollm3"
    with pytest.raises(PolicyError, match=r"serves no model 'smollm3'.*did you mean 'smollm2'"):
        policy.generate([Request("q#0", codec.encode("word"), 8)], Sampling(0.0))
    monkeypatch.setenv("SERVER_KEY", "another")
    with pytest.raises(PolicyError, match=r"\$SERVER_KEY is refused"):
        opened()
