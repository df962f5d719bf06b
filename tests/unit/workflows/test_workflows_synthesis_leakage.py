"""Dev and test sets in every layout that is read elsewhere: none of their questions may be written, nor their golds."""

from __future__ import annotations

import gzip
import json
import logging
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from scripted_writer import ScriptedWriter, WeighingWriter, write_corpus
from test_workflows_synthesis import rows_in, run, settings_of

from agent.writing.asks import Weigh
from retrieval.bm25 import build_bm25
from retrieval.training.row import TrainingRow
from sleuth.errors import DataError
from sleuth.types import Passage
from workflows.synthesis.desk import Desk, Journal
from workflows.synthesis.filters.base import Bench, Filter
from workflows.synthesis.filters.config import FilterSettings
from workflows.synthesis.units import held_out_golds
from workflows.synthesis.writing import Style, Written, written_passage

QUESTION = "in which of the many river towns was the famous blue glass first made"
SHARES = "shares words with a held-out question"
BEIR_QRELS = "query-id\tcorpus-id\tscore\nq1\tp1\t1\nq1\tp2\t0\n"


def leakage(corpus: Path | None, **values: Any) -> Filter:
    desk = Desk(ScriptedWriter(str), Journal(None))
    bench = Bench(desk, "leakage", frozenset(), Style(1.0, 1.0, 2, 100), 0, corpus, lambda _: nullcontext())
    return FilterSettings.of(kind="leakage", **values).open(bench)


def row(query: str, *positives: Passage, instruction: str = "") -> Written:
    return Written(TrainingRow(query, query, positives or (Passage("p", "", "x"),), instruction=instruction))


def golds(corpus: Path) -> set[str]:
    return set(held_out_golds(settings_of(corpus.parent / "run", corpus=str(corpus))).ids)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = path.suffix == ".gz"
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())


def query(name: str = "_id", text: str = "text", **more: object) -> str:
    return json.dumps({name: "q1", text: QUESTION, **more}) + "\n"


def moved(folder: Path) -> Path:
    shutil.move(write_corpus(folder), put_folder(folder / "set" / "corpus") / "corpus.jsonl")
    return folder / "set" / "corpus"


def put_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def archive(folder: Path) -> Path:
    put(folder / "queries.jsonl", query())
    put(folder / "qrels" / "test.tsv", BEIR_QRELS)
    return write_corpus(folder)


def packed(folder: Path) -> Path:
    put(folder / "queries.jsonl.gz", query())
    put(folder / "qrels" / "test.tsv.gz", BEIR_QRELS)
    return write_corpus(folder)


def queries_in_a_folder(folder: Path) -> Path:
    put(folder / "queries" / "queries.jsonl", query())
    put(folder / "qrels" / "test.tsv", BEIR_QRELS)
    return write_corpus(folder)


def of_the_hub(folder: Path) -> Path:
    put(folder / "set" / "queries" / "queries.jsonl", query())
    put(folder / "set-qrels" / "test.tsv", BEIR_QRELS)
    return moved(folder)


def corpus_in_the_set(folder: Path) -> Path:
    put(folder / "set" / "queries.jsonl", query())
    put(folder / "set" / "qrels" / "test.tsv", BEIR_QRELS)
    return moved(folder) / "corpus.jsonl"


def of_mteb(folder: Path) -> Path:
    put(folder / "queries.jsonl", query())
    put(folder / "default" / "validation-00000-of-00001.jsonl", '{"query-id": "q1", "corpus-id": "p1", "score": 1.0}\n')
    return write_corpus(folder)


def of_trec(folder: Path) -> Path:
    put(folder / "queries.jsonl", query())
    put(folder / "qrels" / "test.txt", "q1 0 p1 1\n")
    return write_corpus(folder)


def of_ms_marco(folder: Path) -> Path:
    put(folder / "queries.dev.tsv", f"q1\t{QUESTION}\n")
    put(folder / "qrels.dev.tsv", "q1\t0\tp1\t1\n")
    return write_corpus(folder)


def of_bright(folder: Path) -> Path:
    put(folder / "examples" / "biology.jsonl", query("id", "query", excluded_ids=["N/A"], gold_ids=["p1", "N/A"]))
    shutil.move(write_corpus(folder), put_folder(folder / "documents") / "biology.jsonl")
    return folder / "documents" / "biology.jsonl"


@pytest.mark.parametrize(
    "layout",
    [
        archive,
        packed,
        queries_in_a_folder,
        of_the_hub,
        corpus_in_the_set,
        of_mteb,
        of_trec,
        of_ms_marco,
        of_bright,
    ],
)
def test_questions_and_golds_are_found_in_every_layout_of_judgements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: Callable[[Path], Path]
) -> None:
    monkeypatch.delenv("SLEUTH_DATA", raising=False)
    corpus = layout(tmp_path)
    assert leakage(corpus).judge([row(QUESTION), row("Where is tea grown?")]) == [SHARES, None]
    assert golds(corpus) == {"p1"}
    assert leakage(None, present=False, against=[str(tmp_path)]).judge([row(QUESTION)]) == [SHARES]
    monkeypatch.setenv("SLEUTH_DATA", str(tmp_path))
    assert leakage(None).judge([row(QUESTION)]) == [SHARES]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("test.tsv", f"id\tquery\nq1\t{QUESTION}\n"),
        ("test.tsv", f"q1\t{QUESTION}\n"),
        ("test-00000-of-00001.jsonl", query("id", "question")),
        ("qa-dev.jsonl", query("id", "question")),
        ("hotpot_dev_sample.json", f"[{query('id', 'question', title='T')}]"),
        ("test/0000.jsonl", query("id", "question")),
        ("dev/questions.jsonl", query("id", "question")),
        ("Validation/part.jsonl", query("id", "question")),
    ],
)
def test_questions_are_found_by_the_name_of_their_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    monkeypatch.delenv("SLEUTH_DATA", raising=False)
    put(tmp_path / "qa" / name, text)
    corpus = write_corpus(tmp_path / "qa")
    assert leakage(corpus).judge([row(QUESTION)]) == [SHARES]
    assert golds(corpus) == set()


def test_what_is_no_question_is_not_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLEUTH_DATA", raising=False)
    put(tmp_path / "test_corpus.jsonl", query(title="A passage"))
    put(tmp_path / "dev" / "corpus.jsonl", query())
    put(tmp_path / "latest.jsonl", query())
    put(tmp_path / "examples" / "shots.jsonl", query(text="query"))
    put(tmp_path / "examples" / "broken.json", '{"query": ')
    assert leakage(write_corpus(tmp_path)).judge([row(QUESTION)]) == [None]


def test_a_set_that_is_named_has_a_question_and_where_none_is_found_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SLEUTH_DATA", raising=False)
    put(tmp_path / "q.tsv", f"q1\t{QUESTION}\n")
    named = leakage(None, present=False, against=[str(tmp_path / "q.tsv"), str(tmp_path / "q.tsv")])
    assert named.judge([row(QUESTION)]) == [SHARES]
    put(tmp_path / "other.jsonl", '{"id": "q1", "said": "x"}\n')
    put(tmp_path / "far" / "qrels" / "dev.tsv", BEIR_QRELS)
    for place, why in (("other.jsonl", "no question"), ("far", "no question"), ("far/qrels/dev.tsv", "not beside it")):
        with pytest.raises(DataError, match=why):
            leakage(None, present=False, against=[str(tmp_path / place)])
    caplog.set_level(logging.WARNING, "sleuth.synthesize")
    leakage(write_corpus(tmp_path / "own"))
    assert "no dev or test set beside the corpus" in caplog.text


def test_a_set_of_which_nothing_can_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SLEUTH_DATA", raising=False)
    paragraph = {"context": "c", "qas": [{"question": QUESTION, "id": "1"}]}
    nested = {"data": [{"title": "T", "paragraphs": [paragraph]}]}
    put(tmp_path / "dev-v1.1.json", json.dumps(nested))
    put(tmp_path / "test.jsonl", query())
    caplog.set_level(logging.WARNING, "sleuth.synthesize")
    leakage(write_corpus(tmp_path))
    assert "dev-v1.1.json is named as a dev or test set, and has no question" in caplog.text
    assert "test.jsonl" not in caplog.text


def test_judgements_without_a_gold_passage_end_no_run_and_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = archive(tmp_path / "own")
    put(tmp_path / "own" / "qrels" / "dev.tsv", "query-id\tcorpus-id\tscore\n")
    put(tmp_path / "data" / "far" / "queries.jsonl", query().replace("blue glass", "red glass"))
    put(tmp_path / "data" / "far" / "qrels" / "test.tsv", BEIR_QRELS.replace("p1\t1", "p1\t0"))
    put(tmp_path / "data" / "bad" / "qrels" / "test.tsv", "one\ttwo\n")
    monkeypatch.setenv("SLEUTH_DATA", str(tmp_path / "data"))
    one = leakage(corpus)
    assert one.judge([row(QUESTION), row("river towns was the famous red glass first made")]) == [SHARES, SHARES]
    assert golds(corpus) == {"p1"}


def test_a_held_out_question_is_found_in_what_was_written_beside_the_query(tmp_path: Path) -> None:
    put(
        tmp_path / "dev.jsonl",
        query() + json.dumps({"question": "who painted the tower"}) + '\n{"question": "Arden"}\n',
    )
    one = leakage(None, present=False, against=[str(tmp_path)])
    mine = Passage("p1", "", f"A passage of the corpus says {QUESTION}.")
    rows = [
        row("glass", written_passage(f"Some ask {QUESTION}.")),
        row("glass", mine),
        row("glass", mine, instruction=f"Find {QUESTION}"),
        row("Please say who painted the tower of Arden"),
        row("Who painted the tower?"),
        row("arden"),
        row("Where does Arden lie?"),
    ]
    written = f"a written passage or task {SHARES}"
    identical = "a held-out question"
    assert one.judge(rows) == [written, None, written, SHARES, identical, identical, None]


class LikesBrill(WeighingWriter):
    """Finds the passage of Brill the likeliest, whatever is asked."""

    def _weight(self, ask: Weigh) -> float:
        return 0.0 if ("Brill" in str(ask.messages)) == (ask.text != "no") else -5.0


@pytest.mark.parametrize("kept", [False, True])
def test_golds_and_their_copies_are_neither_neighbours_nor_written_about(tmp_path: Path, kept: bool) -> None:
    corpus = archive(tmp_path)  # of which p1, on Brill, is gold for a test question
    copy = next(line for line in corpus.read_text().splitlines() if "Brill" in line).replace('"p1"', '"a copy"')
    corpus.write_text(f"{copy}\n{corpus.read_text()}")
    build_bm25(corpus, tmp_path / "bm25")
    recipe = {"kind": "gecko", "retriever": {"kind": "bm25", "index": str(tmp_path / "bm25")}, "neighbours": 13}
    passages = {"min_words": 5, "held_out": kept}
    settings = settings_of(tmp_path / "run", corpus=str(corpus), recipe=recipe, passages=passages)
    writer = LikesBrill(lambda _: json.dumps({"task": "Find wares.", "query": "what has a town made for ages"}))
    record = run(settings, writer)
    rows = rows_in(tmp_path / "run")
    shown = [passage for row in rows for name in ("positive", "negative") for passage in row[f"{name}_passages"]]
    assert len(rows) == (13 if kept else 11)
    assert any(passage["title"] == "Brill" for passage in shown) == kept
    assert record["units"]["left_out"] == ({} if kept else {"gold for a held-out question": 2})
