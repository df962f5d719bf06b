"""What a resumed run of ``sleuth synthesize`` notices and counts, and what cannot stop one for ever."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from scripted_writer import ScriptedWriter, write_corpus
from test_workflows_synthesis import ask_of_title, rejects_in, rows_in, run, settings_of

from agent.writing.asks import Ask, OnReply, Reply
from retrieval.bm25 import build_bm25
from retrieval.training.row import TrainingRow
from retrieval.training.rows import write_rows
from sleuth.errors import ArtifactError, ConfigError, PolicyError
from sleuth.runs import RunFolder
from sleuth.types import Passage
from workflows.synthesis.config import GROWING

LONG = "the prompt has 9000 tokens, too many for 8192"


class Failing(ScriptedWriter):
    """Replies to some, after all others, with ``failure`` instead of a text; with ``dies_at`` it ends before these."""

    def __init__(self, names: Sequence[str], failure: Reply, dies_at: int | None = None) -> None:
        super().__init__(ask_of_title, dies_at)
        self.names, self.failure = names, failure

    def write(self, asks: Sequence[Ask], on_reply: OnReply) -> None:
        bad = [ask for ask in asks if any(name in ask.messages[-1].text for name in self.names)]
        super().write([ask for ask in asks if ask not in bad], on_reply)
        if self.dies_at is not None:
            raise KeyboardInterrupt
        self.asked += bad
        for ask in bad:
            on_reply(ask, self.failure)


def interrupted(settings: Any, writer: ScriptedWriter) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(settings, writer)


def test_prompts_that_can_never_succeed_are_rejected_and_asked_once(tmp_path: Path) -> None:
    names = [f"number {number} " for number in range(5)]
    settings = settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path)), chunk=64)
    writer = Failing(names, Reply.refused(LONG))
    record = run(settings, writer)
    assert (record["kept"], record["cost"]["failed"], len(writer.asked)) == (7, 5, 12)
    assert record["rejects"] == [{"by": "writing", "reason": "the request was refused", "count": 5}]
    assert {reject["text"] for reject in rejects_in(tmp_path / "run")} == {LONG}


def test_what_fails_at_every_attempt_does_not_count_as_another_failure_each_time(tmp_path: Path) -> None:
    names = [f"number {number} " for number in range(5)]
    settings = settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path)), chunk=64)
    record = run(settings, Failing(names, Reply.failed("overloaded")))
    assert record["kept"] == 7 and record["rejects"][0] == {"by": "writing", "reason": "the writer failed", "count": 5}


def test_a_run_goes_on_after_what_failed_though_nothing_else_is_left_to_ask(tmp_path: Path) -> None:
    """A killed run has the answers to all but those that fail; these are still few among all."""
    names = [f"number {number} " for number in range(5)]
    settings = settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path)), chunk=64)
    interrupted(settings, Failing(names, Reply.failed("overloaded"), dies_at=99))
    second = Failing(names, Reply.failed("overloaded"))
    assert run(settings, second, resume=True)["kept"] == 7
    assert len(second.asked) == 5 * settings.attempts


def test_more_failures_may_be_allowed_when_a_run_goes_on(tmp_path: Path) -> None:
    names = [f"number {number} " for number in range(8)]
    values: dict[str, Any] = {"corpus": str(write_corpus(tmp_path)), "chunk": 64}
    writer = Failing(names, Reply.refused(LONG))
    with pytest.raises(PolicyError, match="8 of 12 requests failed: the prompt has"):
        run(settings_of(tmp_path / "run", **values), writer)
    record = run(settings_of(tmp_path / "run", max_failed=0.8, **values), writer, resume=True)
    assert record["kept"] == 4


def test_a_run_goes_on_with_another_address_of_the_server(tmp_path: Path) -> None:
    corpus = str(write_corpus(tmp_path))
    served = {"kind": "server", "base_url": "http://host:1/v1", "model": "small"}
    moved = {**served, "base_url": "http://host:2/v1", "concurrency": 2, "timeout_s": 5, "retries": 0}

    def claim(writer: dict[str, Any]) -> None:
        plain = settings_of(tmp_path / "run", corpus=corpus, writer=writer).model_dump(mode="json")
        with RunFolder(tmp_path / "run").claim(plain, resume=True, may_differ=GROWING):
            pass

    claim(served)
    claim(moved)
    with pytest.raises(ArtifactError, match=r"writer\.model"):
        claim({**served, "model": "large"})


class FailingAtFirst(ScriptedWriter):
    """The first attempt of every query fails, as long as the server is ill."""

    def __init__(self, say: Any, *, ill: bool, dies_at: int | None = None) -> None:
        super().__init__(say, dies_at)
        self.ill = ill

    def write(self, asks: Sequence[Ask], on_reply: OnReply) -> None:
        def replied(ask: Ask, reply: Reply) -> None:
            fails = self.ill and "query/0" in ask.key
            on_reply(ask, Reply.failed("status 500") if fails else reply)

        super().write(asks, replied)


def of_one_subject(ask: Ask) -> str:
    """Each attempt at a query has a subject of its own; what is written after it keeps to it."""
    said = " ".join(message.text for message in ask.messages)
    step, attempt = ask.key.split("/")[-2:]
    if step == "verdict":
        return "yes"
    if step.endswith("query"):
        return f"{'BREAD' if attempt == '0' else 'ENGINES'} are what I ask of {ask.key.partition('/')[0]} today"
    return f"{step} of {'BREAD' if 'BREAD' in said else 'ENGINES'} of {ask.key.partition('/')[0]}"


def test_what_follows_a_failed_attempt_is_not_mixed_with_what_follows_another(tmp_path: Path) -> None:
    """Killed at any moment and resumed on a server that is well again: no positive, negative or verdict of others."""
    values: dict[str, Any] = {
        "corpus": str(write_corpus(tmp_path, 3)),
        "recipe": {"kind": "reasonir", "parts": ["varied_length"], "words": [8, 8]},
        "filters": ["answerable"],
        "max_failed": 1.0,
    }
    whole = FailingAtFirst(of_one_subject, ill=True)
    run(settings_of(tmp_path / "whole", **values), whole)
    assert len(whole.asked) == 3 * 5
    for moment in range(len(whole.asked)):
        settings = settings_of(tmp_path / f"killed-{moment}", **values)
        first = FailingAtFirst(of_one_subject, ill=True, dies_at=moment)
        interrupted(settings, first)
        second = FailingAtFirst(of_one_subject, ill=False)
        run(settings, second, resume=True)
        rows = rows_in(tmp_path / f"killed-{moment}")
        assert len(rows) == 3
        for row in rows:
            subject = row["query"].split()[0]
            for passage in (*row["positive_passages"], *row["negative_passages"]):
                assert subject in passage["text"]
        answered = {ask.key for ask in first.asked if "query/0" not in ask.key}
        assert not answered & {ask.key for ask in second.asked}
        for unit in {key.partition("/")[0] for key in answered if "query/1" in key}:
            assert f"{unit}/long_query/0" not in {ask.key for ask in second.asked}


def test_a_verdict_on_another_query_is_not_taken(tmp_path: Path) -> None:
    def say(ask: Ask) -> str:
        if "verdict" in ask.key:
            return "yes" if "GOOD" in ask.messages[-1].text else "no"
        return "GOOD question about this town" if len(second) else "BAD question about this town"

    second: list[int] = []
    settings = settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path, 1)), filters=["answerable"])
    run(settings, ScriptedWriter(say))
    (calls,) = (tmp_path / "run" / "chunks").glob("*.calls.jsonl")
    kept = [line for line in calls.read_text().splitlines() if "/query/" not in line]
    calls.write_text("".join(f"{line}\n" for line in kept))  # as after a failure that is asked for again
    calls.with_name(calls.name.replace(".calls.jsonl", ".json")).unlink()
    second.append(1)
    assert run(settings, ScriptedWriter(say), resume=True)["kept"] == 1


def own_template(path: Path, text: str) -> dict[str, Any]:
    path.write_text(yaml.safe_dump({"steps": {"query": {"messages": [{"user": text}]}}}))
    return {"kind": "queries", "template": str(path)}


@pytest.mark.parametrize("moment", [2, 7])
def test_a_changed_template_or_corpus_is_noticed(tmp_path: Path, moment: int) -> None:
    """In a chunk that is done, and in one that is being written."""
    corpus = str(write_corpus(tmp_path))
    recipe = own_template(tmp_path / "mine.yaml", "Title: {title}\nOLD {passage}")
    settings = settings_of(tmp_path / "run", corpus=corpus, recipe=recipe)
    interrupted(settings, ScriptedWriter(ask_of_title, dies_at=moment))
    own_template(tmp_path / "mine.yaml", "Title: {title}\nNEW {passage}")
    with pytest.raises(ArtifactError, match="the prompt template has changed since"):
        run(settings, ScriptedWriter(ask_of_title), resume=True)
    own_template(tmp_path / "mine.yaml", "Title: {title}\nOLD {passage}")
    write_corpus(tmp_path, 14)
    with pytest.raises(ArtifactError, match=r"what is written about \(corpus or data\) has changed since"):
        run(settings, ScriptedWriter(ask_of_title), resume=True)
    write_corpus(tmp_path, 12)
    assert run(settings, ScriptedWriter(ask_of_title), resume=True)["kept"] == 12


def test_chunks_that_are_done_are_filtered_anew_where_the_filters_know_more(tmp_path: Path) -> None:
    """A test set that appeared, a retriever over other passages, another question to the judge: nothing is written."""
    corpus = write_corpus(tmp_path)
    judge = tmp_path / "judge.yaml"
    index = {"kind": "bm25", "index": str(tmp_path / "bm25")}
    build_bm25(corpus, tmp_path / "bm25")
    judge.write_text(yaml.safe_dump({"steps": {"verdict": {"messages": [{"user": "{query} {passage}"}]}}}))
    filters = [
        {"kind": "leakage", "words": 4},
        {"kind": "round_trip", "retriever": index, "k": 12},
        {"kind": "answerable", "template": str(judge)},
    ]

    def say(ask: Ask) -> str:
        if "verdict" in ask.key:
            return "no" if "STRICT" in ask.messages[-1].text and "Corvo" in ask.messages[-1].text else "yes"
        return ask_of_title(ask)

    settings = settings_of(tmp_path / "run", corpus=str(corpus), filters=filters)

    def resumed() -> tuple[set[str], int]:
        writer = ScriptedWriter(say)
        run(settings, writer, resume=True)
        return {row["positive_passages"][0]["title"] for row in rows_in(tmp_path / "run")}, len(writer.asked)

    every, _ = resumed()
    assert len(every) == 12 and resumed() == (every, 0)
    (tmp_path / "test.jsonl").write_text('{"question": "What has Arden made for ages?"}\n')
    assert resumed() == (every - {"Arden"}, 0)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(line for line in corpus.open() if "Brill" not in line))
    build_bm25(other, tmp_path / "bm25", overwrite=True)
    assert resumed() == (every - {"Arden", "Brill"}, 0)
    judge.write_text(yaml.safe_dump({"steps": {"verdict": {"messages": [{"user": "STRICT {query} {passage}"}]}}}))
    assert resumed() == (every - {"Arden", "Brill", "Corvo"}, 10)
    assert resumed() == (every - {"Arden", "Brill", "Corvo"}, 0)


def test_a_passage_that_was_corrected_is_noticed(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    settings = settings_of(tmp_path / "run", corpus=str(corpus))
    run(settings, ScriptedWriter(ask_of_title))
    corpus.write_text(corpus.read_text().replace("glass", "bells"))
    with pytest.raises(ArtifactError, match="has changed since"):
        run(settings, ScriptedWriter(ask_of_title), resume=True)


def test_seconds_of_a_process_that_was_killed_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def slow(ask: Ask) -> str:
        clock[0] += 3.0
        return ask_of_title(ask)

    settings = settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path)), limit=9, chunk=64)
    interrupted(settings, ScriptedWriter(slow, dies_at=5))
    record = run(settings, ScriptedWriter(slow), resume=True)
    assert record["seconds"] == 27.0
    settings = settings_of(tmp_path / "run", corpus=str(tmp_path / "corpus.jsonl"), limit=12, chunk=64)
    assert run(settings, ScriptedWriter(slow), resume=True)["seconds"] == 36.0


def test_a_reply_that_no_encoding_can_hold_is_a_reject_like_others(tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path)), recipe={"kind": "qwen3"}, attempts=1)
    record = run(settings, ScriptedWriter(lambda _: "no json \ud83d here"))
    assert record["rejects"] == [{"by": "writing", "reason": "unreadable: no JSON", "count": 12}]
    assert {reject["text"] for reject in rejects_in(tmp_path / "run")} == {"no json ? here"}
    failing = Failing(["number 3 "], Reply.refused("half a pair: \ud83d"))
    run(settings_of(tmp_path / "other", corpus=str(tmp_path / "corpus.jsonl")), failing)
    assert [reject["text"] for reject in rejects_in(tmp_path / "other")] == ["half a pair: ?"]


def test_rows_say_who_made_them_and_with_which_seed_also_those_that_are_not_kept(tmp_path: Path) -> None:
    filters = [{"kind": "near_duplicates", "per_passage": 1}]
    values: dict[str, Any] = {"corpus": str(write_corpus(tmp_path)), "seed": 3, "filters": filters, "keep": 4}
    recipe = {"kind": "queries", "per_passage": 2}
    run(settings_of(tmp_path / "run", recipe=recipe, **values), ScriptedWriter(lambda ask: f"what is it {ask.key}"))
    made = [row["made"] for row in rows_in(tmp_path / "run")]
    made += [reject["row"]["made"] for reject in rejects_in(tmp_path / "run")]
    assert len(made) > 4 and all((one["writer"], one["seed"]) == ("scripted", 3) for one in made)


def test_a_writer_that_cannot_weigh_is_refused_before_it_writes(tmp_path: Path) -> None:
    corpus = str(write_corpus(tmp_path))
    writer = ScriptedWriter(lambda _: json.dumps({"task": "t", "query": "q"}))
    gecko = {"kind": "gecko", "retriever": {"kind": "bm25", "index": "unused"}}
    for values in ({"recipe": gecko}, {"filters": [{"kind": "answerable", "by": "odds"}]}):
        with pytest.raises(ConfigError, match="does not say how likely"):
            run(settings_of(tmp_path / "run", corpus=corpus, **values), writer, overwrite=True)
    assert not writer.asked


def test_rows_with_alike_ids_are_other_rows(tmp_path: Path) -> None:
    """``q`` reworded twice, and ``q-1``; the verdict on one is not that on another."""
    passages = {name: Passage(name, name, f"the text of {name}") for name in ("q", "q-1")}
    rows = [TrainingRow(name, f"who made {name}", (passage,)) for name, passage in passages.items()]
    write_rows(rows, tmp_path / "rows.jsonl")

    def say(ask: Ask) -> str:
        if "verdict" in ask.key:
            return "yes" if "text of q-1" in ask.messages[-1].text else "no"
        return f"some words {ask.seed}"

    recipe = {"kind": "rewrites", "into": ["paraphrase", "decontextualise"]}
    values: dict[str, Any] = {"recipe": recipe, "data": [{"path": str(tmp_path / "rows.jsonl")}]}
    run(settings_of(tmp_path / "run", filters=["answerable"], **values), ScriptedWriter(say))
    kept, rejects = rows_in(tmp_path / "run"), rejects_in(tmp_path / "run")
    assert {row["positive_passages"][0]["docid"] for row in kept} == {"q-1"} and len(kept) == 2
    ids = [row["query_id"] for row in kept] + [reject["id"] for reject in rejects]
    assert len(set(ids)) == 4


def test_passages_with_one_id_are_each_written_about(tmp_path: Path) -> None:
    names = ["a", "a", "a~2", "b", "b"]
    rows = [{"_id": name, "title": "t", "text": f"text number {i} of this town"} for i, name in enumerate(names)]
    random.Random(0).shuffle(rows)
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = settings_of(tmp_path / "run", corpus=str(tmp_path / "corpus.jsonl"))
    record = run(settings, ScriptedWriter(lambda ask: f"which town is it {ask.key}"))
    assert record["kept"] == 5 and len({row["query_id"] for row in rows_in(tmp_path / "run")}) == 5


def test_two_filters_of_one_kind_have_verdicts_of_their_own(tmp_path: Path) -> None:
    strict = {"steps": {"verdict": {"messages": [{"user": "STRICT {query} {passage}"}]}}}
    (tmp_path / "strict.yaml").write_text(yaml.safe_dump(strict))
    filters = ["answerable", {"kind": "answerable", "template": str(tmp_path / "strict.yaml")}]

    def say(ask: Ask) -> str:
        if "verdict" in ask.key:
            return "no" if "STRICT" in ask.messages[-1].text else "yes"
        return ask_of_title(ask)

    settings = settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path)), filters=filters)
    found = run(settings, ScriptedWriter(say))["filters"]
    assert [(one["in"], one["out"]) for one in found.values()] == [(12, 12), (12, 0)]
