"""Writers: a server that is busy, breaks, cuts off or replies in broken JSON; a policy of this project."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from scripted_writer import ChatServer, chance, write_corpus
from test_workflows_synthesis import rejects_in, rows_in, settings_of

import sleuth.retries
from agent.policies.scripted import ScriptedPolicy
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from agent.writing.asks import Ask, Message, Reply, Weigh, Writer
from agent.writing.config import WriterSettings
from agent.writing.policy_writer import PolicyWriter, plain_text
from sleuth.errors import ConfigError, PolicyError
from workflows.synthesis.job import run_synthesis
from workflows.synthesis.run import Progressing

ROW = json.dumps({"persona": "p", "type": "t", "difficulty": "d", "instruction": "Find.", "query": "which ware is it"})


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleuth.retries.time, "sleep", lambda _: None)


@contextmanager
def serve(plan: Any) -> Iterator[ChatServer]:
    server = ChatServer(plan)
    yield server
    server.close()


def replies(writer: Writer, *asks: Ask) -> dict[str, Reply]:
    found: dict[str, Reply] = {}
    writer.write(asks, lambda ask, reply: found.update({ask.key: reply}))
    return found


def faulty(number: int, body: dict[str, Any]) -> int | str | bytes:
    """A third of the requests goes wrong, each time in another way."""
    if chance("fault", number) > 1 / 3:
        return ROW
    return (429, 500, b'{"choices": [{"mess', ROW[:30], "I cannot do that.")[number % 5]


def run(settings: Any, *, resume: bool = False) -> dict[str, Any]:
    show = Progressing(lambda _: nullcontext(lambda *_: None), lambda _: nullcontext())
    return run_synthesis(settings, resume, False, show)


def test_of_a_server_that_fails_a_third_of_requests_nothing_is_lost_and_all_is_counted(tmp_path: Path) -> None:
    with serve(faulty) as server:
        _all_is_counted(tmp_path, server)


def _all_is_counted(tmp_path: Path, server: ChatServer) -> None:
    writer = {"kind": "server", "base_url": server.url, "concurrency": 4}
    corpus = str(write_corpus(tmp_path, 40))
    values: dict[str, Any] = {"corpus": corpus, "recipe": {"kind": "qwen3"}, "attempts": 4, "chunk": 16}
    record = run(settings_of(tmp_path / "run", writer=writer, **values))
    rows, rejects = rows_in(tmp_path / "run"), rejects_in(tmp_path / "run")
    about = [row["made"]["seed_passage"] for row in rows] + [reject["id"] for reject in rejects]
    assert sorted(about) == sorted(f"p{number}" for number in range(40))  # none twice, none lost
    assert record["kept"] == len(rows) > 30
    assert sum(one["count"] for one in record["rejects"]) == len(rejects)
    assert record["writer"] == "small" and record["cost"]["tokens"] == 5 * record["cost"]["asked"]
    assert len(server.bodies) > record["cost"]["asked"] >= 80  # the busy answers were asked for again


def test_a_server_that_is_away_ends_the_run_in_one_line_and_the_run_goes_on_when_it_is_back(tmp_path: Path) -> None:
    down = [False]
    values: dict[str, Any] = {"corpus": str(write_corpus(tmp_path)), "recipe": {"kind": "qwen3"}}
    with serve(lambda number, body: 503 if down[0] else ROW) as server:
        writer = {"kind": "server", "base_url": server.url, "retries": 1, "concurrency": 2}
        settings = settings_of(tmp_path / "run", writer=writer, **values)
        down[0] = True
        with pytest.raises(PolicyError, match=r"4 of 4 requests failed: .*status 503.*--resume goes on"):
            run(settings)
        down[0] = False
        record = run(settings, resume=True)
    assert record["kept"] == 12 and not rejects_in(tmp_path / "run")


@pytest.mark.parametrize("retries", [0, 1])
def test_a_prompt_that_a_server_cannot_serve_is_a_reject_also_where_nothing_else_is_asked(
    tmp_path: Path, retries: int
) -> None:
    corpus = str(write_corpus(tmp_path))
    with serve(lambda number, body: 500 if "number 7 " in str(body["messages"]) else "which ware is it") as server:
        writer = {"kind": "server", "base_url": server.url, "retries": retries, "concurrency": 4}
        record = run(settings_of(tmp_path / "run", corpus=corpus, writer=writer))
        assert record["kept"] == 11 and record["rejects"][0]["reason"] == "the writer failed"
        assert record["cost"]["retried"] == 3 * retries and record["cost"]["failed"] == 3
        ask = Ask("a", (Message("user", "number 7 "),), 5)
        assert "status 500" in replies(WriterSettings.of(base_url=server.url).open(), ask)["a"].failure


def test_a_server_that_goes_away_ends_the_run_however_little_is_left_to_ask() -> None:
    ask = Ask("a", (Message("user", "hello"),), 5)
    with serve(lambda number, body: ROW) as server:
        server.headers = {"Connection": "close"}  # else it goes on with those that are open
        writer = WriterSettings.of(base_url=server.url, retries=0).open()
        assert replies(writer, ask)["a"].text == ROW
    with pytest.raises(PolicyError, match=r"1 requests failed: no server answers.*--resume goes on"):
        replies(writer, ask)
    again = WriterSettings.of(base_url=server.url, model="small", retries=0, concurrency=2).open()
    with pytest.raises(PolicyError, match="the first 3 requests failed: no server answers"):
        replies(again, *(Ask(f"{number}", ask.messages, 5) for number in range(20)))


def test_a_busy_server_is_left_alone_for_as_long_as_it_wishes(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(sleuth.retries.time, "sleep", waited.append)
    with serve(lambda number, body: (429, 503, ROW)[min(number, 2)]) as server:
        server.headers = {"Retry-After": "7"}
        (reply,) = replies(WriterSettings.of(base_url=server.url).open(), Ask("a", (Message("user", "x"),), 5)).values()
    assert (reply.text, reply.retries) == (ROW, 2) and waited == [7.0, 7.0]


def test_replies_are_asked_for_by_schema_until_the_server_says_that_it_cannot() -> None:
    with serve(lambda number, body: 400 if "response_format" in body else ROW) as server:
        writer = WriterSettings.of(base_url=server.url, model="small", extra_body={"top_k": 5}).open()
        ask = Ask("a", (Message("user", "hello"),), 5, schema={"type": "object"}, stop=("\n",), seed=3)
        assert [replies(writer, ask)["a"].text for _ in range(2)] == [ROW, ROW]
        forms = ["response_format" in body for body in server.bodies]
        assert forms == [True, False, False]
        sent = server.bodies[-1]
        assert (sent["stop"], sent["seed"], sent["max_tokens"], sent["top_k"]) == (["\n"], 3, 5, 5)


def test_a_wrong_key_is_one_line_and_a_request_that_is_refused_is_one_failed_reply() -> None:
    with serve(lambda number, body: 401) as server, pytest.raises(PolicyError, match="rejects the key"):
        WriterSettings.of(base_url=server.url).open().write([Ask("a", (Message("user", "x"),), 5)], lambda *_: None)
    with serve(lambda number, body: 400 if "long" in str(body["messages"]) else ROW) as server:
        asks = [Ask(text, (Message("user", text),), 5) for text in ("long", "short")]
        found = replies(WriterSettings.of(base_url=server.url).open(), *asks)
        assert found["short"].text == ROW and "no room" in found["long"].failure
        alone = replies(WriterSettings.of(base_url=server.url).open(), asks[0])
        assert "no room" in alone["long"].failure  # nothing is wrong with the server


def whole(**more: object) -> tuple[dict[str, str], bytes]:
    choice = {"message": {"content": ROW}, "finish_reason": "stop"}
    return {}, json.dumps({"choices": [choice], **more}).encode()


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ([1], (0, 0)),
        ({"prompt_tokens": "abc", "completion_tokens": 7}, (0, 7)),
        ({"prompt_tokens": -3, "completion_tokens": None}, (0, 0)),
        ("none", (0, 0)),
    ],
)
def test_a_count_of_tokens_that_is_none_costs_no_reply(usage: object, counts: tuple[int, int]) -> None:
    with serve(lambda number, body: whole(usage=usage)) as server:
        found = replies(WriterSettings.of(base_url=server.url).open(), Ask("a", (Message("user", "x"),), 5))["a"]
    assert (found.text, found.prompt_tokens, found.tokens) == (ROW, *counts)


@pytest.mark.parametrize("content", ["", " ", None])
def test_an_empty_text_of_a_server_cannot_be_read_like_that_of_a_policy(content: str | None, tmp_path: Path) -> None:
    choice = {"message": {"content": content}, "finish_reason": "stop"}
    empty: tuple[dict[str, str], bytes] = {}, json.dumps({"choices": [choice]}).encode()
    with serve(lambda number, body: empty) as server:
        writer = {"kind": "server", "base_url": server.url}
        record = run(settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path)), writer=writer))
    assert record["rejects"] == [{"by": "writing", "reason": "unreadable: empty", "count": 12}]
    assert (record["cost"]["asked"], record["cost"]["failed"]) == (36, 0)


@pytest.mark.parametrize("broken", [({"Content-Encoding": "gzip"}, b"no gzip"), ({}, b'{"choices":' + b"[" * 200_000)])
def test_a_body_that_cannot_be_read_is_asked_for_again(broken: tuple[dict[str, str], bytes]) -> None:
    ask = Ask("a", (Message("user", "x"),), 5)
    with serve(lambda number, body: ROW if number else broken) as server:
        assert replies(WriterSettings.of(base_url=server.url).open(), ask)["a"].text == ROW
    with serve(lambda number, body: broken if "bad" in str(body["messages"]) else ROW) as server:
        asks = [Ask(text, (Message("user", text),), 5) for text in ("good", "bad", "fine")]
        found = replies(WriterSettings.of(base_url=server.url, retries=1).open(), *asks)
    assert [bool(found[name].failure) for name in ("good", "bad", "fine")] == [False, True, False]


@pytest.mark.parametrize("status", [403, 404])
def test_one_request_that_is_denied_ends_no_run(status: int) -> None:
    asks = [Ask(text, (Message("user", text),), 5) for text in ("denied", *map(str, range(8)))]
    with serve(lambda number, body: status if "denied" in str(body["messages"]) else ROW) as server:
        found = replies(WriterSettings.of(base_url=server.url, concurrency=4).open(), *asks)
    assert found["denied"].failure and all(found[str(number)].text == ROW for number in range(8))
    with serve(lambda number, body: status) as server, pytest.raises(PolicyError, match="requests failed"):
        replies(WriterSettings.of(base_url=server.url, concurrency=4).open(), *asks)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "policy"
    words = [*["what", "is", "the", "title", "passage", "question", "that", "this", "answers", "of", "a"]]
    build_tiny_policy(folder, words, TinySettings(hidden_size=64, layers=2, heads=4, max_length=512), seed=0)
    return folder


def test_a_policy_writes_the_same_alone_and_in_a_batch_and_says_how_likely_a_text_is(
    tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    from agent.config import PolicySettings
    from agent.policies.loading import load_policy_model

    writer = WriterSettings.of(policy={"model": str(tiny)}, batch_size=2).open()
    assert isinstance(writer, PolicyWriter)
    asks = [Ask(f"a{i}", (Message("user", "what is the title " * i),), 6, seed=i) for i in range(1, 4)]
    together, alone = replies(writer, *asks), [replies(writer, ask)[ask.key] for ask in asks]
    assert list(together.values()) == alone and all(reply.prompt_tokens and reply.tokens for reply in alone)
    long = Ask("long", (Message("user", "title " * 600),), 6)
    assert "too many for 512" in replies(writer, long)["long"].failure

    prompt, text = (Message("user", "what is the"),), "title of a passage"
    model, codec = load_policy_model(PolicySettings(model=str(tiny)), str(tiny))
    start, ids = codec.encode("what is the", trusted=True), codec.encode(text)
    logits = model(torch.tensor([[*start, *ids]])).logits[0].log_softmax(-1)
    expected = sum(logits[len(start) + i - 1, token].item() for i, token in enumerate(ids)) / len(ids)
    far = Weigh("c", (Message("user", "title " * 600),), text)
    (found, empty, too_long) = writer.weigh([Weigh("a", prompt, text), Weigh("b", prompt, ""), far])
    assert found.logprob == pytest.approx(expected, abs=1e-4) and found.tokens == len(start) + len(ids)
    assert empty.logprob is None and too_long.logprob is None
    assert "1 of 3 texts are not weighed: more than 512 tokens" in caplog.text


def test_a_text_for_a_base_model_goes_on_where_the_reply_belongs(tiny: Path) -> None:
    shots = (Message("user", "Q: one?"), Message("assistant", "1"), Message("user", "Q: two?"))
    assert plain_text(shots) == "Q: one? 1\n\nQ: two?"
    from agent.policies.loading import load_codec

    codec = load_codec(str(tiny))
    policy = ScriptedPolicy(codec, lambda _question, _turn: "what is the\ntitle")
    (reply,) = replies(PolicyWriter(policy, codec), Ask("a", shots, 20, stop=("\n",))).values()
    assert reply.text.strip() == "what is the" and reply.finish == "stop"
    with pytest.raises(ConfigError, match="ScriptedPolicy does not say how likely"):
        PolicyWriter(policy, codec).weigh([Weigh("a", shots, "x")])


class Held(ScriptedPolicy):
    """A policy with structured output, as far as tests can see; it refuses schemas that say ``refused``."""

    def __init__(self, codec: Any) -> None:
        super().__init__(codec, lambda _question, _turn: "what is the title")
        self.schemas: list[str | None] = []

    def generate(self, requests: Any, sampling: Any, on_token: Any = None) -> Any:
        self.schemas += [request.schema for request in requests]
        if any("refused" in (request.schema or "") for request in requests):
            raise PolicyError("no such schema")
        return super().generate(requests, sampling, on_token)


def test_a_policy_is_held_to_a_schema_until_it_refuses_one(tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    from agent.policies.loading import load_codec

    def ask(**schema: str) -> Ask:
        return Ask("a", (Message("user", "what"),), 5, schema=schema)

    codec = load_codec(str(tiny))
    policy = Held(codec)
    writer = PolicyWriter(policy, codec)
    replies(writer, ask(type="object"))
    assert replies(writer, ask(type="refused"))["a"].text == "what is the title"
    replies(writer, ask(type="object"))
    assert policy.schemas == ['{"type": "object"}', '{"type": "refused"}', None, None]
    assert "replies are read as they come: no such schema" in caplog.text
    free = Held(codec)
    replies(PolicyWriter(free, codec, structured=False), ask(type="object"))
    thought = Ask("a", (Message("user", "what <think>"),), 5, schema={"type": "object"})
    replies(PolicyWriter(free, codec), thought)
    assert free.schemas == [None, None]


def test_what_is_too_long_for_the_model_moves_no_batch(tiny: Path) -> None:
    """A resumed run asks again for what failed, and must sample the rest in the batches of an unbroken one."""
    from agent.policies.loading import load_codec

    codec, sizes = load_codec(str(tiny)), list[int]()

    class Counting(Held):
        context = 100

        def generate(self, requests: Any, sampling: Any, on_token: Any = None) -> Any:
            sizes.append(len(requests))
            return super().generate(requests, sampling, on_token)

    texts = ["what", "title " * 200, "is", "the", "of"]
    asks = [Ask(f"a{i}", (Message("user", text),), 5) for i, text in enumerate(texts)]
    found = replies(PolicyWriter(Counting(codec), codec, batch_size=2), *asks)
    assert sizes == [2, 2] and "too many for 100" in found["a1"].failure and len(found) == 5


def test_a_writer_is_told_from_what_is_given() -> None:
    assert WriterSettings.model_validate("http://host:1/v1").kind == "server"
    assert WriterSettings.model_validate("some/model").kind == "policy"
    assert WriterSettings.of(model="some/model", backend="vllm").kind == "policy"
    assert WriterSettings.of(base_url="http://host/v1").kind == "server"
    with pytest.raises(ConfigError, match="must begin with http"):
        WriterSettings.of(base_url="host/v1")
