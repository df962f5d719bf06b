"""The policy behind a server: a small stand-in for what real ones answer, and for how they fail.

vLLM's own server is asked in tests/engines.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from policy_contract import CHECKS, STOP
from tiny_tokenizers import TAGS, byte_level, sentencepiece

from agent.codec import HFCodec
from agent.config import PolicySettings
from agent.policies.backends import open_policy
from agent.policies.config import OpenAISettings
from agent.policies.loading import resolve_model
from agent.policies.openai_policy import OpenAIPolicy
from sleuth.errors import ConfigError, PolicyError
from sleuth.protocols import AsyncPolicy
from sleuth.types import Request, Sampling

GREEDY = Sampling(0.0, stop=STOP)


class Server:
    """Answers with ``says`` (the stop string cut off, as OpenAI does) or, as vLLM, with token ids."""

    def __init__(self, codec) -> None:
        self.codec = codec
        self.says = "<think> Need </think> <search> Paris"
        self.ends = "</search>"
        self.owner = "somebody"
        self.models = ["tiny"]
        self.key = ""
        self.failures: list[int] = []
        self.asked: list[dict] = []
        self.unknown: list[str] = []
        self.stop_reason: str | None = None
        self.slow = 0.0
        self.breaks_stream = False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self, None)

            def do_POST(self):
                outer.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *_args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.handle_error = lambda *_: None  # a client that leaves is no error
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler, body) -> None:
        if self.key and handler.headers.get("Authorization") != f"Bearer {self.key}":
            send(handler, 401, {"error": {"message": "bad key"}})
        elif handler.path == "/v1/models":
            send(handler, 200, {"data": [{"id": name, "owned_by": self.owner} for name in self.models]})
        elif handler.path != "/v1/completions":
            send(handler, 404, {"detail": "Not Found"})
        else:
            self.asked.append(body)
            time.sleep(self.slow)
            if refused := [name for name in self.unknown if name in body]:
                send(handler, 400, {"error": {"message": f"Unrecognized request argument supplied: {refused[0]}"}})
            elif self.failures:
                send(handler, self.failures.pop(0), {"error": {"message": "overloaded\nplease wait"}})
            elif body["model"] not in self.models:
                send(handler, 404, {"error": {"message": f"The model {body['model']} does not exist"}})
            else:
                self.complete(handler, body)

    def complete(self, handler, body) -> None:
        ids = self.codec.encode(f"{self.says} {self.ends}", trusted=True)
        budget = body["max_tokens"]
        finish, cut = ("stop", ids) if len(ids) <= budget else ("length", ids[:budget])
        if body.get("return_token_ids"):
            reason = self.ends if finish == "stop" else None
            pieces = [
                {"token_ids": [t], "logprobs": {"token_logprobs": [-0.5]}, "text": "?", "finish_reason": None}
                for t in cut
            ]
            pieces[-1] |= {"finish_reason": finish, "stop_reason": reason}
            whole = {**pieces[-1], "token_ids": cut, "logprobs": {"token_logprobs": [-0.5] * len(cut)}}
        else:
            words = self.says.split(" ")
            pieces = [{"text": word + " ", "finish_reason": None} for word in words] + [
                {"text": "", "finish_reason": finish}
            ]
            whole = {"text": self.says if finish == "stop" else self.codec.decode(cut), "finish_reason": finish}
            whole["stop_reason"] = self.stop_reason
        if body.get("stream"):
            stream(handler, pieces, self.breaks_stream)
        else:
            send(handler, 200, {"choices": [whole]})


def send(handler, status, answer):
    data = json.dumps(answer).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    handler.wfile.write(data)


def stream(handler, pieces, breaks):
    handler.send_response(200)
    handler.send_header("Connection", "close")
    if breaks:
        handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for piece in pieces[: 1 if breaks else None]:
        handler.wfile.write(f"data: {json.dumps({'choices': [piece]})}\n\n".encode())
    if not breaks:
        handler.wfile.write(b"data: [DONE]\n\n")
    handler.close_connection = True


@pytest.fixture
def server(tiny):
    served = Server(tiny[1])
    yield served
    served.http.shutdown()
    served.http.server_close()


def make(server, model="tiny", **settings):
    return OpenAIPolicy(OpenAISettings(base_url=server.url, retries=2, **settings), server.codec, model)


def request_of(server, tokens=24):
    return Request("q#0", server.codec.encode("Question : what is the capital ?"), tokens, 3)


@pytest.mark.parametrize("owner", ["vllm", "somebody"])
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_both_forms_keep_the_contract_of_policies(server, owner, check):
    server.owner = owner
    check(make(server), server.codec)


def test_a_server_of_token_ids_is_asked_and_heard_in_tokens(server):
    server.owner = "vllm"
    policy = make(server)
    done = policy.generate([request_of(server)], GREEDY)[0]
    asked = server.asked[-1]
    assert policy.trainable and asked["prompt"] == list(request_of(server).prefix) and asked["seed"] == 3
    assert done.token_ids == tuple(server.codec.encode(f"{server.says} </search>", trusted=True))
    assert done.logprobs == (-0.5,) * len(done.token_ids) and done.finish_reason == "stop"


def test_a_server_of_text_is_not_trainable_and_its_cut_stop_string_is_put_back(server):
    policy = make(server)
    done = policy.generate([request_of(server)], GREEDY)[0]
    assert not policy.trainable and done.logprobs == () and done.finish_reason == "stop"
    assert server.asked[-1]["prompt"].startswith("Question")
    assert server.codec.decode(done.token_ids).endswith("</search>")


@pytest.mark.parametrize("on_token", [None, lambda *_: None], ids=["whole", "stream"])
@pytest.mark.parametrize("owner", ["vllm", "somebody"])
def test_what_a_model_s_generation_config_sets_is_overruled_in_every_request(server, owner, on_token):
    server.owner = owner
    make(server).generate([request_of(server)], GREEDY, on_token)
    neutral = {"presence_penalty": 0, "frequency_penalty": 0, "repetition_penalty": 1, "top_k": -1, "min_p": 0}
    assert {name: server.asked[-1].get(name) for name in neutral} == neutral


def test_a_server_that_refuses_a_setting_by_name_is_asked_without_it_and_that_is_said_once(server, caplog):
    server.unknown = ["min_p", "repetition_penalty", "top_k"]
    policy = make(server)
    for _ in range(2):
        policy.generate([request_of(server)], GREEDY)
    assert len(server.asked) == 5  # three refusals, then an answer each time
    left = {"presence_penalty", "frequency_penalty"}
    assert left < server.asked[-1].keys() and not server.asked[-1].keys() & set(server.unknown)
    (said,) = [r.getMessage() for r in caplog.records if r.name == "sleuth.policy"]
    assert "does not know min_p, repetition_penalty, top_k" in said
    server.unknown, asked = ["seed"], len(server.asked)  # another one is no reason to leave anything out
    with pytest.raises(PolicyError, match=r"status 400\): Unrecognized request argument supplied: seed"):
        policy.generate([request_of(server)], GREEDY)
    assert len(server.asked) == asked + 1


def test_special_tokens_of_the_prompt_reach_a_server_of_text(server):
    eos = server.codec.eos_token_id
    make(server).generate([Request("q#0", [eos, *request_of(server).prefix], 8)], GREEDY)
    assert server.asked[-1]["prompt"].startswith("<eos>")


@pytest.mark.parametrize(
    ("says", "stop", "reason"),
    [
        ("<think> Paris", "", "eos"),
        ("<answer> Paris", "</answer>", "stop"),
        ("<search> Paris </search> and <answer> Paris", "</answer>", "stop"),
    ],
)
def test_what_was_cut_is_the_tag_that_stands_open(server, says, stop, reason):
    server.says = says
    done = make(server).generate([request_of(server)], GREEDY)[0]
    text = server.codec.decode(done.token_ids)
    assert done.finish_reason == reason and text.endswith(stop or "Paris")


def test_a_server_of_text_may_say_what_it_cut(server):
    """A mention of <answer> stands open as well; without the server's word, the nearest tag is taken."""
    server.says = "I could <search> x or <answer> y"
    done = make(server).generate([request_of(server)], GREEDY)[0]
    assert server.codec.decode(done.token_ids).endswith("</answer>")
    server.stop_reason = "</search>"
    done = make(server).generate([request_of(server)], GREEDY)[0]
    assert server.codec.decode(done.token_ids).endswith("y </search>") and done.finish_reason == "stop"


def test_a_server_is_asked_to_show_tags_that_are_special_tokens(server):
    codec = HFCodec(byte_level(special=TAGS))
    asked = []
    for owner in ("vllm", "somebody"):
        server.owner, server.codec = owner, codec
        settings = OpenAISettings(base_url=server.url)
        OpenAIPolicy(settings, codec, None).generate([Request("q#0", codec.encode("Oslo"), 40)], GREEDY)
        asked.append(server.asked[-1]["skip_special_tokens"])
    assert asked == [False, False]


def test_a_server_of_text_is_not_given_the_start_that_its_tokenizer_adds(server):
    codec = HFCodec(sentencepiece(legacy=True))
    prefix = codec.encode(f"{codec.bos}Find the answer", trusted=True)
    settings = OpenAISettings(base_url=server.url)
    OpenAIPolicy(settings, codec, None).generate([Request("q#0", prefix, 40)], GREEDY)
    assert server.asked[-1]["prompt"] == "Find the answer"
    assert codec.tokenizer(server.asked[-1]["prompt"])["input_ids"] == prefix


def test_an_unfinished_text_gets_no_stop_string(server):
    done = make(server).generate([request_of(server, tokens=4)], GREEDY)[0]
    assert done.finish_reason == "length" and "</search>" not in server.codec.decode(done.token_ids)


def test_requests_go_out_together_and_come_back_in_order(server):
    server.slow = 0.2
    policy = make(server, concurrency=8)
    batch = [Request(f"q{i}#0", request_of(server).prefix, i + 1) for i in range(8)]
    started = time.perf_counter()
    done = policy.generate(batch, GREEDY)
    assert time.perf_counter() - started < 1.2  # one after the other it takes 1.6
    assert [len(g.token_ids) for g in done] == [min(i + 1, len(done[-1].token_ids)) for i in range(8)]

    async def each():
        return await asyncio.gather(*(policy.generate_one(r, GREEDY) for r in batch))

    assert isinstance(policy, AsyncPolicy)
    assert asyncio.run(each()) == done


def test_what_passes_by_itself_is_tried_again(server):
    server.failures = [503, 429]
    assert make(server).generate([request_of(server)], GREEDY)[0].token_ids
    assert len(server.asked) == 3


@pytest.mark.parametrize("on_token", [None, lambda *_: None])
def test_failures_end_in_one_line(server, on_token):
    def ask(policy):
        policy.generate([request_of(server)], GREEDY, on_token)

    policy = make(server)
    server.failures = [503] * 3
    with pytest.raises(PolicyError, match=r"status 503\): overloaded please wait"):
        ask(policy)
    server.failures = [400]
    with pytest.raises(PolicyError, match="status 400"):
        ask(policy)
    assert len(server.asked) == 4  # a request that is wrong is not sent again
    with pytest.raises(PolicyError, match=r"serves no model 'tiiny'.*did you mean 'tiny'"):
        ask(make(server, "tiiny"))
    server.slow = 1.0
    with pytest.raises(PolicyError, match=r"did not answer within 0\.2 s, 3 times"):
        ask(make(server, timeout_s=0.2))


def test_a_key_comes_from_the_environment_and_a_refused_one_is_said(server, monkeypatch):
    server.key = "secret"
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(PolicyError, match=r"rejects the key.*\$MY_KEY is not set"):
        make(server, key_variable="MY_KEY")
    monkeypatch.setenv("MY_KEY", "wrong")
    with pytest.raises(PolicyError, match=r"\$MY_KEY is refused") as caught:
        make(server, key_variable="MY_KEY")
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "secret")
    assert make(server, key_variable="MY_KEY").generate([request_of(server)], GREEDY)


def test_no_server_and_a_wrong_address_are_said(server, tiny_folder):
    with pytest.raises(PolicyError, match=r"no server answers at http://127.0.0.1:9/v1 \(start it"):
        OpenAIPolicy(OpenAISettings(base_url="http://127.0.0.1:9/v1", retries=0), server.codec, None)
    wrong = OpenAISettings(base_url=server.url.removesuffix("/v1"), retries=0)
    with pytest.raises(PolicyError, match="API's root"):
        OpenAIPolicy(wrong, server.codec, "tiny")


def test_a_broken_stream_is_no_answer(server):
    server.breaks_stream = True
    with pytest.raises(PolicyError, match="broke off"):
        make(server).generate([request_of(server)], GREEDY, on_token=lambda *_: None)


def test_a_server_that_gives_no_token_ids_after_all_is_said(server):
    policy = make(server, tokens="always")
    with pytest.raises(PolicyError, match=r"policy\.openai\.tokens to never"):
        original, server.complete = server.complete, lambda h, b: original(h, {**b, "return_token_ids": False})
        policy.generate([request_of(server)], GREEDY)


def test_settings_open_it_and_a_url_stands_for_the_only_model_served(server, tiny_folder):
    there = OpenAISettings(base_url=server.url, tokenizer=str(tiny_folder))
    for settings in (
        PolicySettings(backend="openai", model="tiny", openai=there),
        PolicySettings(backend="openai", openai=there),
        PolicySettings(model=server.url, openai=OpenAISettings(tokenizer=str(tiny_folder))),
    ):
        policy, codec = open_policy(settings)
        assert policy.generate([request_of(server)], GREEDY)[0].token_ids
        assert codec.eos_token_id == server.codec.eos_token_id
    server.models = ["tiny", "other"]
    with pytest.raises(PolicyError, match=r"set policy\.model to one of: tiny, other"):
        open_policy(PolicySettings(backend="openai", openai=there))
    with pytest.raises(ConfigError, match=r"needs a tokenizer here too"):
        open_policy(PolicySettings(model=server.url))


def test_a_server_cannot_be_trained():
    with pytest.raises(PolicyError, match="is a server, whose weights are not here"):
        resolve_model("http://127.0.0.1:8000/v1")


def test_a_server_is_not_asked_for_log_probs_that_it_does_not_have(server):
    asked = len(server.asked)
    with pytest.raises(PolicyError, match=r"with grpo\.top_p below 1, set policy\.backend to transformers or vllm"):
        make(server, tokens="always").generate([request_of(server)], Sampling(1.0, 0.9, full_logprobs=True))
    assert len(server.asked) == asked


def test_backends_that_are_not_there_are_said(tiny_folder):
    with pytest.raises(ConfigError, match="did you mean 'vllm'"):
        open_policy(PolicySettings(model=str(tiny_folder), backend="vlm"))


def test_auto_without_vllm_takes_transformers_and_says_so(tiny_folder, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    policy, _ = open_policy(PolicySettings(model=str(tiny_folder), backend="auto", device="cpu"))
    assert type(policy).__name__ == "TransformersPolicy"
    assert [r.message for r in caplog.records if r.name == "sleuth.policy"] == [
        "policy.backend auto takes transformers: vllm is not installed"
    ]
