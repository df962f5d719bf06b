"""A retriever that rewrites its queries: what is searched, what is kept, what a failure does."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from scripted_writer import ScriptedWriter, write_corpus

from agent.writing.asks import Ask
from agent.writing.config import WriterSettings
from retrieval.bm25 import build_bm25
from retrieval.config import RetrieverSettings
from retrieval.open import open_retriever
from sleuth.errors import ConfigError, DataError, RetrieverError
from sleuth.query_forms import form_of, written
from sleuth.types import Hit
from workflows.rewriting import Rewriter, RewriteRetriever

WRITERS: list[ScriptedWriter] = []


def the_writer() -> ScriptedWriter:
    return WRITERS[-1]


@pytest.fixture(scope="module")
def bm25(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rewriting")
    build_bm25(write_corpus(folder), folder / "index")
    return folder / "index"


def thinks(ask: Ask) -> str:
    return "<think>hm</think>Glass is made in Arden." if "window" in ask.messages[-1].text else "Nothing."


def test_what_is_written_is_searched_once_for_each_query_and_kept(bm25: Path, tmp_path: Path) -> None:
    kept, writer = tmp_path / "rewrites.jsonl", ScriptedWriter(thinks)
    WRITERS.append(writer)
    values = {"kind": "rewrite", "policy": {"kind": "test_workflows_rewriting:the_writer"}, "inner": str(bm25)}
    settings = RetrieverSettings.of(**values, rewrites=str(kept))
    retriever = open_retriever(settings, cached=False, resilient=False)
    found = retriever.search(["windows", "windows", "zzz"], 3)
    assert [hits[0].passage.id if hits else None for hits in found[:2]] == ["p0", "p0"] and found[0] == found[1]
    assert len(writer.asked) == 2 and all(ask.temperature == 0.0 for ask in writer.asked)
    again = ScriptedWriter(thinks)
    WRITERS.append(again)
    assert open_retriever(settings, cached=False, resilient=False).search(["windows"], 3)[0] == found[0]
    assert not again.asked
    bare = open_retriever(bm25, cached=False, resilient=False)
    assert bare.search(["windows"], 3) == [[]] and bare.fingerprint != retriever.fingerprint
    other = open_retriever(settings.model_copy(update={"keep_query": False}), cached=False, resilient=False)
    assert other.fingerprint != retriever.fingerprint
    assert settings.patience_s == 900 and settings.at_hand


def test_rewriters_share_a_file_without_losing_a_line(tmp_path: Path) -> None:
    path, queries = tmp_path / "rewrites.jsonl", [[f"{who} asks {i}" for i in range(40)] for who in "abcd"]

    def write(mine: list[str]) -> None:
        rewriter = Rewriter(ScriptedWriter(lambda _: "glass " * 3000), "search", path=path)
        for query in mine:
            rewriter.searched([query])

    with ThreadPoolExecutor(len(queries)) as pool:
        list(pool.map(write, queries))
    kept = [json.loads(row)["query"] for row in path.read_text().splitlines()]
    assert sorted(kept) == sorted(query for mine in queries for query in mine)


def test_a_line_that_is_not_whole_is_written_again_and_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "rewrites.jsonl"
    Rewriter(ScriptedWriter(lambda _: "first"), "search", path=path).searched(["a", "b"])
    whole = path.read_text()
    path.write_text(whole.replace('"query": "b"', '"query": b') + '{"query": "c"}\n[]\n\0\0\n{"by": "x", "que')
    writer = ScriptedWriter(lambda _: "second")
    assert Rewriter(writer, "search", path=path).searched(["a", "b"]) == ["a first", "b second"]
    assert len(writer.asked) == 1
    never = ScriptedWriter(lambda _: "third")
    assert Rewriter(never, "search", path=path).searched(["a", "b"]) == ["a first", "b second"] and not never.asked
    with pytest.raises(DataError, match="cannot read"):
        Rewriter(never, "search", path=tmp_path)


def test_a_query_that_is_not_rewritten_is_an_error_of_the_retriever(bm25: Path) -> None:
    inner = open_retriever(bm25, cached=False, resilient=False)
    retriever = RewriteRetriever(inner, Rewriter(ScriptedWriter(lambda _: " "), "search"))
    with pytest.raises(RetrieverError, match="1 of 1 queries were not rewritten: empty"):
        retriever.search(["windows"], 3)
    assert retriever.search([], 3) == []


def test_an_empty_reply_is_asked_for_again_sampled() -> None:
    writer = ScriptedWriter(lambda ask: "glass" if ask.temperature else "")
    rewriter = Rewriter(writer, "search", keep_query=False)
    assert rewriter.searched(["a", "b"]) == ["glass", "glass"]
    assert [ask.temperature for ask in writer.asked] == [0.0, 0.0, 1.0, 1.0]
    assert len({ask.seed for ask in writer.asked}) == 4


def test_a_thought_that_does_not_end_is_not_searched() -> None:
    writer = ScriptedWriter(lambda ask: "<think>so</think>glass" if ask.temperature else "<think>\nOkay, the user asks")
    assert Rewriter(writer, "search", keep_query=False).searched(["a"]) == ["glass"]


def test_what_an_agent_adds_to_its_query_goes_along_unwritten() -> None:
    class Inner:
        fingerprint, query_form = "inner", "question_query"

        def search(self, queries: list[str], k: int) -> list[list[Hit]]:
            asked.extend(queries)
            return [[] for _ in queries]

    asked: list[str] = []
    retriever = RewriteRetriever(Inner(), Rewriter(ScriptedWriter(lambda _: "glass"), "search", keep_query=False))
    assert form_of(retriever) == "question_query"
    retriever.search([written("question_query", "windows", "what are they made of?", ""), "windows"], 3)
    assert asked == [written("question_query", "glass", "what are they made of?", ""), "glass"]


def test_a_bar_in_a_plain_query_is_the_users_own() -> None:
    class Inner:
        fingerprint = "inner"

        def search(self, queries: list[str], k: int) -> list[list[Hit]]:
            asked.extend(queries)
            return [[] for _ in queries]

    asked: list[str] = []
    writer = ScriptedWriter(lambda _: "glass")
    retriever = RewriteRetriever(Inner(), Rewriter(writer, "search", keep_query=False))
    retriever.search(["cat a.txt | grep b fails", "| col a | col b |"], 3)
    assert asked == ["glass", "glass"]
    assert "cat a.txt | grep b fails" in writer.asked[0].messages[-1].text
    assert "| col a | col b |" in writer.asked[1].messages[-1].text


def test_rewrites_of_a_writer_with_other_settings_are_not_taken_for_its_own(tmp_path: Path) -> None:
    def rewriter(writer: ScriptedWriter, **more: object) -> Rewriter:
        settings = WriterSettings.of(**{"base_url": "http://one/v1", "model": "m", **more})
        return Rewriter(writer, "search", path=tmp_path / "rewrites.jsonl", made_by=settings.identity)

    rewriter(ScriptedWriter(lambda _: "glass")).searched(["a"])
    again, other = ScriptedWriter(lambda _: "rope"), ScriptedWriter(lambda _: "rope")
    elsewhere = {"base_url": "http://two/v1", "concurrency": 3, "timeout_s": 5, "retries": 1, "key_variable": "K"}
    assert rewriter(again, **elsewhere).searched(["a"]) == ["a glass"] and not again.asked
    assert rewriter(other, extra_body={"chat_template_kwargs": {"enable_thinking": False}}).searched(["a"]) == [
        "a rope"
    ]
    policy = WriterSettings.of(policy={"model": "m"})
    same = WriterSettings.of(policy={"model": "m", "device": "cpu"}, batch_size=3)
    plain = WriterSettings.of(policy={"model": "m"}, chat="never")
    assert policy.identity == same.identity != plain.identity


def test_rewrites_of_a_model_that_was_trained_further_are_not_taken_for_its_own(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()

    def trained(weights: bytes) -> dict[str, object]:
        (tmp_path / "policy" / "model.safetensors").write_bytes(weights)
        return WriterSettings.model_validate(str(tmp_path / "policy")).identity

    first = trained(b"weights")
    assert WriterSettings.model_validate(str(tmp_path / "policy")).identity == first
    assert trained(b"other weights") != first


def test_choices_of_a_template_are_drawn_for_each_query(tmp_path: Path) -> None:
    def asked(styles: list[str]) -> tuple[str, dict[str, str]]:
        step = {"messages": [{"user": "Write in a {style} way: {query}"}]}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump({"choices": {"style": styles}, "steps": {"rewrite": step}}))
        writer = ScriptedWriter(lambda _: "x")
        rewriter = Rewriter(writer, str(path))
        rewriter.searched([f"query {number}" for number in range(20)])
        return rewriter.fingerprint, {ask.key: ask.messages[-1].text for ask in writer.asked}

    fingerprint, texts = asked(["dry", "lively"])
    assert {text.split()[3] for text in texts.values()} == {"dry", "lively"}
    assert asked(["dry", "lively"]) == (fingerprint, texts)
    assert asked(["dry", "short"])[0] != fingerprint


def test_settings_of_the_writer_are_checked_with_the_config(bm25: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'backend'"):
        RetrieverSettings.of(kind="rewrite", policy={"policy": {"model": "m", "bakend": "vllm"}}, inner=str(bm25))
    with pytest.raises(ConfigError, match="inner is missing"):
        RetrieverSettings.of(kind="rewrite", policy={"model": "m"})
