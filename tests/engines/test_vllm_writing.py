"""Writing with vLLM: replies that follow a JSON schema, and the same rows whenever the run was killed."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from agent.config import PolicySettings
from agent.policies.backends import open_policy
from agent.policies.config import VllmSettings
from agent.policies.loading import load_codec
from agent.writing.asks import Ask, Message, Reply, Weigh
from agent.writing.policy_writer import PolicyWriter
from hub.models import SMOLLM2
from sleuth.settings import validate
from workflows.synthesis.config import SynthesisSettings
from workflows.synthesis.job import run_synthesis
from workflows.synthesis.journal import Journal
from workflows.synthesis.layout import SynthesisLayout
from workflows.synthesis.run import Progressing

SCHEMA = {
    "type": "object",
    "properties": {"query": {"type": "string", "maxLength": 20}, "level": {"enum": ["easy", "hard"]}},
    "required": ["query", "level"],
    "additionalProperties": False,
}
REFUSED = {"type": "object", "properties": {"query": {"type": "no such type"}}}

WRITERS: list[PolicyWriter] = []


def the_writer() -> PolicyWriter:
    return WRITERS[-1]


@pytest.fixture(scope="module")
def smollm2():
    from agent.policies.vllm_policy import open_vllm_policy

    own = VllmSettings(cache_gib=0.5, max_tokens=512)
    policy, codec = open_vllm_policy(PolicySettings(model=SMOLLM2, device="cpu", vllm=own), SMOLLM2)
    yield policy, codec
    policy.close()


def replies(writer: PolicyWriter, *asks: Ask) -> dict[str, Reply]:
    found: dict[str, Reply] = {}
    writer.write(asks, lambda ask, reply: found.update({ask.key: reply}))
    return found


def ask(number: int, schema: Any = None, text: str = "Invent a query about rivers.") -> Ask:
    return Ask(f"a{number}", (Message("user", text),), 64, seed=number, schema=schema)


def test_replies_follow_the_schema_of_their_ask_and_others_are_free(smollm2) -> None:
    found = replies(PolicyWriter(*smollm2), *(ask(number, SCHEMA) for number in range(4)), ask(4))
    for number in range(4):
        value = json.loads(found[f"a{number}"].text)
        assert value.keys() == {"query", "level"} and value["level"] in ("easy", "hard")
    free = replies(PolicyWriter(*smollm2, structured=False), ask(0, SCHEMA), ask(4))
    assert free["a0"].text != found["a0"].text and free["a4"] == found["a4"]


def test_a_reply_does_not_depend_on_its_batch(smollm2) -> None:
    asks = [ask(number, SCHEMA if number % 2 else None, f"Invent a query about river {number}.") for number in range(6)]
    together = replies(PolicyWriter(*smollm2), *asks)
    assert replies(PolicyWriter(*smollm2, batch_size=2), *reversed(asks)) == together


def test_a_schema_that_the_engine_does_not_know_is_left_out(smollm2) -> None:
    free = replies(PolicyWriter(*smollm2), ask(1))
    assert replies(PolicyWriter(*smollm2), ask(1, REFUSED)) == free


def test_a_text_is_as_likely_as_transformers_says(smollm2) -> None:
    there = PolicyWriter(*open_policy(PolicySettings(model=SMOLLM2, device="cpu")))
    texts = ("Which river runs through Paris?", "yes", "")
    weighs = [Weigh(text, (Message("user", "The Seine. Invent a query."),), text) for text in texts]
    *found, empty = (one.logprob for one in PolicyWriter(*smollm2, max_rows=1).weigh(weighs))
    assert found == pytest.approx([one.logprob for one in there.weigh(weighs)[:2]], abs=1e-3) and empty is None


def test_a_prompt_beyond_the_engines_context_is_one_failed_reply(smollm2) -> None:
    found = replies(PolicyWriter(*smollm2), ask(1, text="word " * 600), ask(2))
    assert "too many for 512" in found["a1"].failure and found["a2"].text


def test_killed_at_any_moment_it_ends_with_the_same_rows(tmp_path, vllm_policy, tiny_folder, monkeypatch) -> None:
    WRITERS.append(PolicyWriter(vllm_policy, load_codec(str(tiny_folder)), batch_size=3))
    corpus = str(tmp_path / "corpus.jsonl")
    rows = (
        {"_id": f"p{i}", "title": f"Town {i}", "text": f"It found {i} cities of the capital {i}"} for i in range(10)
    )
    Path(corpus).write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = synthesize(tmp_path / "whole", corpus)
    expected = [path.read_bytes() for path in whole]
    assert expected[0] and sum(lines.count(b"\n") for lines in expected) == 10
    count = sum(path.read_bytes().count(b'"reply"') for path in (tmp_path / "whole" / "chunks").glob("*.calls.jsonl"))
    for moment in range(0, count, 3):
        out = tmp_path / f"killed-{moment}"
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            die_after(moment, patched)
            synthesize(out, corpus)
        vllm_policy.engine._engine.reset_prefix_cache()  # as in a new process
        assert [path.read_bytes() for path in synthesize(out, corpus, resume=True)] == expected


def die_after(replies_kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    add, left = Journal.add, iter(range(replies_kept))

    def dying(self: Journal, request: Any, reply: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        add(self, request, reply)

    monkeypatch.setattr(Journal, "add", dying)


def synthesize(out: Path, corpus: str, *, resume: bool = False) -> list[Path]:
    values = {
        "out": out,
        "corpus": corpus,
        "writer": {"kind": "test_vllm_writing:the_writer"},
        "recipe": {"kind": "queries"},
        "passages": {"min_words": 5},
        "filters": ["near_duplicates"],
        "chunk": 7,
    }
    show = Progressing(lambda _: nullcontext(lambda *_: None), lambda _: nullcontext())
    run_synthesis(validate(SynthesisSettings, values, "test"), resume, False, show)
    return [SynthesisLayout(out).rows, SynthesisLayout(out).rejects]
