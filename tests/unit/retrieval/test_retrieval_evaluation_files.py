"""Judgements, queries and runs from disk; what is broken is named by file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.bm25 import BM25Retriever
from retrieval.evaluation.evaluate import judge_run, retrieve
from retrieval.evaluation.judgements import read_qrels, read_queries
from retrieval.evaluation.runs import read_run, write_run
from sleuth.errors import DataError
from sleuth.types import Question


def put(tmp_path: Path, text: str, name: str = "file.tsv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


EXPECTED = {"q1": {"a": 1, "b": 0}, "q2": {"c": 2}}


@pytest.mark.parametrize(
    "text",
    [
        "query-id\tcorpus-id\tscore\nq1\ta\t1\nq1\tb\t0\n\nq2\tc\t2\n",
        "\ufeffquery-id\tcorpus-id\tscore\r\nq1\ta\t1\r\nq1\tb\t0\r\nq2\tc\t2\r\n",
        "q1 0 a 1\nq1 0 b -2\nq2 Q0 c 2\n",
        "q1\t0\ta\t1\nq1\t0\tb\t0\nq2\t0\tc\t2",
        "q1\ta\t1\nq1\ta\t1\nq1\tb\t0\nq2\tc\t2",
    ],
)
def test_qrels_of_beir_and_of_trec(tmp_path: Path, text: str) -> None:
    assert read_qrels(put(tmp_path, text)) == EXPECTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1 a\n", r"file\.tsv, line 1: a judgement cannot have 2 columns"),
        ("query-id\tcorpus-id\tscore\nq1\ta\tyes\n", "line 2: relevance is 'yes'"),
        ("q1\ta\t1\nq1\ta\t2\n", "line 2: q1 a already has a different judgement"),
        ("q1\t\t1\n", "line 1: a column is empty"),
        ("", "judges no passage"),
        ("query-id\tcorpus-id\tscore\n", "judges no passage"),
        ("q1\ta\t0\n", "judges no passage"),
    ],
)
def test_broken_qrels_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_qrels(put(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    put(tmp_path, "x")
    with pytest.raises(DataError, match=r"no file .*fils\.tsv .did you mean 'file\.tsv'"):
        read_qrels(tmp_path / "fils.tsv")
    with pytest.raises(DataError, match="cannot read"):
        read_qrels(tmp_path)
    (tmp_path / "bin").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is UTF-16 text"):
        read_run(tmp_path / "bin")
    (tmp_path / "bin").write_bytes(b"q 0 d\xe9 1\n")
    with pytest.raises(DataError, match="bin, line 1: text in another encoding than UTF-8"):
        read_run(tmp_path / "bin")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("q.jsonl", '{"_id": "1", "text": "one?"}\n{"_id": "2", "text": "two?", "metadata": {}}\n'),
        ("q.tsv", "1\tone?\n2\ttwo?\n"),
        ("q.json", '[{"id": 1, "question": "one?"}, {"id": "2", "query": "two?"}]'),
    ],
)
def test_queries_in_their_layouts(tmp_path: Path, name: str, text: str) -> None:
    assert read_queries(put(tmp_path, text, name)) == [Question("1", "one?", ()), Question("2", "two?", ())]


def test_queries_bring_their_answers(tmp_path: Path) -> None:
    path = put(tmp_path, '{"id": "1", "question": "one?", "golden_answers": ["a", "b"]}', "q.jsonl")
    assert read_queries(path) == [Question("1", "one?", ("a", "b"))]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("q.jsonl", '{"_id": "1", "text": "a"}\n{"_id": "1", "text": "b"}', "duplicate query '1'"),
        ("q.jsonl", '{"text": "a"}', "line 1: no '_id'"),
        ("q.jsonl", '{"_id": "1"}', "line 1: no 'text'"),
        ("q.jsonl", '{"_id": "1", "text": "a", "golden_answers": "b"}', "'golden_answers' is not a list"),
        ("q.tsv", "only text\n", "line 1: not a query"),
        ("q.tsv", "", "has no queries"),
    ],
)
def test_broken_queries_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        read_queries(put(tmp_path, text, name))


NAMES = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=5)


@given(
    run=st.dictionaries(
        NAMES, st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), min_size=1), min_size=1
    )
)
def test_a_run_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, run: dict) -> None:
    path = tmp_path_factory.mktemp("run") / "a.run"
    write_run(path, run)
    assert read_run(path) == run


def test_the_layout_of_a_run(tmp_path: Path) -> None:
    write_run(tmp_path / "r", {"q": {"a": 0.5, "b": 2.0}}, tag="mine")
    assert (tmp_path / "r").read_text() == "q Q0 b 1 2.0 mine\nq Q0 a 2 0.5 mine\n"
    with pytest.raises(DataError, match="'a b' cannot be written to a TREC run"):
        write_run(tmp_path / "r", {"q": {"a b": 1.0}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 a 1 0.5\n", "line 1: 5 columns"),
        ("q Q0 a 1 high x\n", "line 1: the score 'high' is not a number"),
        ("q Q0 a 1 nan x\n", "the score 'nan'"),
        ("q Q0 a 1 2 x\nq Q0 a 2 1 x\n", "line 2: duplicate passage a for query q"),
        ("", "has no hits"),
    ],
)
def test_broken_runs_are_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_run(put(tmp_path, text))


def test_from_a_retriever_to_figures(index: Path, corpus: Path, tmp_path: Path) -> None:
    retriever = BM25Retriever(index)
    first = next(iter(retriever.store))
    queries = [
        Question("1", f"{first.title} {first.text}", ("no such answer", first.text.split()[-1].strip("."))),
        Question("2", "zzz", ()),
    ]
    progress: list[tuple[int, int]] = []
    found = retrieve(retriever, queries, 1_000, batch_size=1, on_progress=lambda *seen: progress.append(seen))
    assert progress == [(1, 2), (2, 2)]
    assert found.run["2"] == {}
    assert found.answers["1"][first.id] == 1
    assert "2" not in found.answers
    write_run(tmp_path / "r", found.run)
    again = read_run(tmp_path / "r")
    assert again == {"1": found.run["1"]}
    assert judge_run(again, {"1": queries[0].answers}, corpus) == found.answers


def test_the_level_of_a_query_is_found_wherever_its_row_says_it(tmp_path: Path) -> None:
    path = tmp_path / "queries.jsonl"
    rows: list[dict[str, object]] = [
        {"level": None, "metadata": {"level": "Keyword"}},
        {"level": " ", "metadata": '{"level": "keyword "}'},
        {"level": "KEYWORD", "metadata": {"level": "semantic"}},
        {"level": 3},
        {"level": None, "metadata": None},
        {"metadata": "no {json"},
    ]
    path.write_text("".join(json.dumps({"_id": str(i), "text": "what", **row}) + "\n" for i, row in enumerate(rows)))
    assert [query.kind for query in read_queries(path)] == ["keyword", "keyword", "keyword", "3", "", ""]
