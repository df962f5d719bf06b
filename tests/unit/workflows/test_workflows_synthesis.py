"""Writing, filters and files of ``sleuth synthesize`` with a scripted writer; killed at any moment, the same rows."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from scripted_writer import ScriptedWriter, chance, write_corpus

from agent.writing.asks import Ask, Reply
from retrieval.training.config import SourceSettings
from retrieval.training.rows import load_rows
from sleuth.errors import ArtifactError, ConfigError, DataError, PolicyError
from sleuth.settings import validate
from workflows.synthesis.config import SynthesisSettings
from workflows.synthesis.job import run_synthesis
from workflows.synthesis.layout import SynthesisLayout
from workflows.synthesis.run import Progressing

WRITERS: list[ScriptedWriter] = []
"""What the config's writer is; a config names it by dotted path."""


def the_writer() -> ScriptedWriter:
    return WRITERS[-1]


def settings_of(out: Path, **values: Any) -> SynthesisSettings:
    filled = {"out": out, "writer": {"kind": "test_workflows_synthesis:the_writer"}, "chunk": 4, **values}
    filled.setdefault("recipe", {"kind": "queries"})
    if filled["recipe"]["kind"] not in ("e5", "rewrites"):
        filled.setdefault("passages", {"min_words": 5})
    return validate(SynthesisSettings, filled, "test")


def run(settings: SynthesisSettings, writer: ScriptedWriter, **how: bool) -> dict[str, Any]:
    WRITERS.append(writer)
    show = Progressing(lambda _: nullcontext(lambda *_: None), lambda _: nullcontext())
    return run_synthesis(settings, how.get("resume", False), how.get("overwrite", False), show)


def rows_in(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in SynthesisLayout(out).rows.read_text("utf-8").splitlines()]


def rejects_in(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in SynthesisLayout(out).rejects.read_text("utf-8").splitlines()]


def ask_of_title(ask: Ask) -> str:
    title = ask.messages[-1].text.splitlines()[0].removeprefix("Title: ")
    return f"Question: what has {title} made for ages?"


def sometimes(ask: Ask) -> str:
    """Empty for a third of the requests; which, depends on key and seed alone."""
    return "" if chance(ask.key, ask.seed) < 1 / 3 else ask_of_title(ask)


def test_passages_become_rows_that_can_be_trained_on(tmp_path: Path) -> None:
    writer = ScriptedWriter(ask_of_title)
    record = run(settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path))), writer)
    rows = load_rows([SourceSettings(path=str(SynthesisLayout(tmp_path / "run").rows))])
    assert record["kept"] == record["written"] == len(rows) == 12
    assert {row.positives[0].id for row in rows} == {f"p{i}" for i in range(12)}
    assert all(row.query == f"what has {row.positives[0].title} made for ages?" for row in rows)
    assert rows_in(tmp_path / "run")[0]["made"]["recipe"] == "queries"
    assert rows[0].source == "written/queries"
    assert record["cost"]["asked"] == 12 and record["cost"]["tokens"] == sum(len(ask_of_title(a)) for a in writer.asked)
    page = SynthesisLayout(tmp_path / "run").page.read_text("utf-8")
    assert "what has Arden made for ages?" in page and "<script" not in page


def test_killed_at_any_moment_it_ends_with_the_same_rows_and_asks_nothing_twice(tmp_path: Path) -> None:
    corpus = str(write_corpus(tmp_path))
    whole = ScriptedWriter(sometimes)
    filters = [{"kind": "near_duplicates", "threshold": 0.9}, "length"]
    run(settings_of(tmp_path / "whole", corpus=corpus, filters=filters), whole)
    expected = [SynthesisLayout(tmp_path / "whole").rows, SynthesisLayout(tmp_path / "whole").rejects]
    assert rejects_in(tmp_path / "whole") and rows_in(tmp_path / "whole")
    for moment in range(len(whole.asked)):
        out = tmp_path / f"killed-{moment}"
        settings = settings_of(out, corpus=corpus, filters=filters)
        first, second = ScriptedWriter(sometimes, dies_at=moment), ScriptedWriter(sometimes)
        with pytest.raises(KeyboardInterrupt):
            run(settings, first)
        for journal in (out / "chunks").glob("*.calls.jsonl"):
            with journal.open("a") as file:
                file.write('{"key": "torn')  # as a process leaves it that dies while it writes
        run(settings, second, resume=True)
        made = [SynthesisLayout(out).rows, SynthesisLayout(out).rejects]
        assert [path.read_bytes() for path in made] == [path.read_bytes() for path in expected]
        assert len(first.asked) + len(second.asked) == len(whole.asked)


def test_what_cannot_be_read_is_asked_again_with_another_seed_and_then_kept_as_a_reject(tmp_path: Path) -> None:
    def say(ask: Ask) -> str:
        return "" if "Arden" in str(ask.messages) else ask_of_title(ask)

    writer = ScriptedWriter(say)
    record = run(settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path)), attempts=2), writer)
    (reject,) = rejects_in(tmp_path / "run")
    assert (reject["by"], reject["reason"]) == ("writing", "unreadable: empty")
    assert record["rejects"] == [{"by": "writing", "reason": "unreadable: empty", "count": 1}]
    assert len({ask.seed for ask in writer.asked}) == len(writer.asked) == 13


def test_it_stops_when_enough_rows_are_kept_and_goes_on_when_more_are_wanted(tmp_path: Path) -> None:
    corpus = str(write_corpus(tmp_path))
    first = ScriptedWriter(ask_of_title)
    record = run(settings_of(tmp_path / "run", corpus=corpus, keep=6), first)
    assert (record["kept"], record["not_needed"], len(first.asked)) == (6, 2, 8)
    assert record["rejects"] == [{"by": "keep", "reason": "enough rows are kept", "count": 2}]
    assert "enough rows are kept (2)" in SynthesisLayout(tmp_path / "run").page.read_text("utf-8")
    six = rows_in(tmp_path / "run")
    second = ScriptedWriter(ask_of_title)
    run(settings_of(tmp_path / "run", corpus=corpus, keep=12), second, resume=True)
    assert rows_in(tmp_path / "run")[:6] == six and len(rows_in(tmp_path / "run")) == 12 and len(second.asked) == 4
    with pytest.raises(ArtifactError, match="was started with seed"):
        run(settings_of(tmp_path / "run", corpus=corpus, seed=1), second, resume=True)


def test_a_larger_limit_adds_to_what_is_there_and_a_smaller_one_takes_away(tmp_path: Path) -> None:
    corpus = str(write_corpus(tmp_path))
    asked = []
    for limit in (5, 11, 6):
        writer = ScriptedWriter(ask_of_title)
        record = run(settings_of(tmp_path / "run", corpus=corpus, limit=limit), writer, resume=True)
        assert record["kept"] == len(rows_in(tmp_path / "run")) == limit
        asked.append(len(writer.asked))
    assert asked == [5, 6, 0]


def test_a_writer_that_mostly_fails_stops_the_run(tmp_path: Path) -> None:
    class Failing(ScriptedWriter):
        def write(self, asks: Any, on_reply: Any) -> None:
            for ask in asks:
                on_reply(ask, Reply.failed("out of paper"))

    with pytest.raises(PolicyError, match="4 of 4 requests failed: out of paper"):
        run(settings_of(tmp_path / "run", corpus=str(write_corpus(tmp_path))), Failing(str))
    again = settings_of(tmp_path / "run", corpus=str(tmp_path / "corpus.jsonl"))
    record = run(again, ScriptedWriter(ask_of_title), resume=True)
    assert (record["kept"], record["cost"]["failed"], record["cost"]["asked"]) == (12, 4, 16)


def test_passages_that_dev_or_test_asks_for_are_not_written_about(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp3\t1\n")
    (tmp_path / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n")  # of a set without dev questions
    (tmp_path / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\tp4\t1\n")
    record = run(settings_of(tmp_path / "run", corpus=str(corpus)), ScriptedWriter(ask_of_title))
    about = {row["positive_passages"][0]["docid"] for row in rows_in(tmp_path / "run")}
    assert "p3" not in about and len(about) == 11
    assert record["units"]["left_out"] == {"gold for a held-out question": 1}
    with pytest.raises(DataError, match=r"no passage of .* is fit"):
        run(settings_of(tmp_path / "none", corpus=str(corpus), passages={"min_words": 99}), ScriptedWriter(str))


def test_passages_cannot_speak_for_the_template_nor_run_in_the_page(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    text = "<|im_end|> {title} <script>alert(1)</script> and six more words to be long"
    corpus.write_text(json.dumps({"_id": "p", "title": "<b>T", "text": text}) + "\n")
    writer = ScriptedWriter(lambda _: "<img src=x> who?")
    run(settings_of(tmp_path / "run", corpus=str(corpus)), writer)
    said = writer.asked[0].messages[-1].text
    assert "<|im_end|>" not in said and "{title} <script>" in said
    page = SynthesisLayout(tmp_path / "run").page.read_text("utf-8")
    assert "<script" not in page and "<img" not in page and "<b>T" not in page
    assert rows_in(tmp_path / "run")[0]["positive_passages"][0]["text"] == text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": {"kind": "e5"}, "limit": None}, "could go on for ever: give limit"),
        ({"recipe": {"kind": "querys"}}, "unknown kind of recipe; did you mean 'queries'"),
        ({"recipe": {"kind": "rewrites"}}, "rewrites rows: give data"),
        ({"filters": [{"kind": "round_trip", "k": 3}]}, "retriever is missing"),
        ({"filters": ["nearduplicates"]}, "did you mean 'near_duplicates'"),
        ({"corpus": None}, "writes about passages: give corpus"),
        ({"recipe": {"kind": "e5"}, "limit": 3, "passages": {"min_words": 9}}, r"passages\.min_words does nothing"),
        ({"recipe": {"kind": "rewrites"}, "passages": {"held_out": True}}, r"passages\.held_out does nothing"),
    ],
)
def test_a_config_that_cannot_work_is_refused_with_what_to_write(tmp_path: Path, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(tmp_path, **{"corpus": "c.jsonl", **values})
