"""Training questions as the settings ask for them, from files as the field keeps them."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from sleuth.errors import DataError
from sleuth.types import Question
from workflows.config import DataSettings, SourceSettings
from workflows.wiring import load_training_data, read_dev, read_source


def data_of(*sources: SourceSettings, **more: Any) -> DataSettings:
    return DataSettings(train=list(sources), **more)


@pytest.fixture
def path(tmp_path: Path) -> str:
    rows = [
        {"id": str(i), "question": f"q{i}", "golden_answers": ["a"], "metadata": {"type": kind}}
        for i, kind in enumerate(["bridge", "comparison", "bridge", "comparison", "bridge"])
    ]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_a_source_keeps_its_kinds_then_its_limit(path: str):
    data = load_training_data(
        data_of(SourceSettings(path=path, kinds=["bridge"], limit=2), SourceSettings(path=path, kinds=["comparison"])),
        0,
    )
    assert [[q.id for q in source] for source in data.sources] == [["0", "2"], ["1", "3"]]


def test_a_kind_that_is_not_there_is_named_with_those_that_are(path: str):
    with pytest.raises(DataError, match="no question of kind brigde") as caught:
        load_training_data(data_of(SourceSettings(path=path, kinds=["brigde"])), 0)
    assert "bridge, comparison" in str(caught.value.hint)


def test_a_seeded_draw_takes_rows_from_all_over_a_file(tmp_path: Path):
    file = tmp_path / "train.jsonl"
    rows = [
        {"id": str(i), "question": "q", "golden_answers": ["a"], "metadata": {"kind": "ab"[i % 2]}} for i in range(90)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def ids(limit: int, seed: int, **more: Any) -> list[int]:
        source = SourceSettings.model_validate({"path": str(file), "limit": limit, "draw": "seeded", **more})
        return [int(question.id) for question in read_source(source, seed)]

    thirty = ids(30, 1)
    assert thirty == sorted(set(thirty)) and len(thirty) == 30
    assert all(any(third * 30 <= i < third * 30 + 30 for i in thirty) for third in range(3)), "not of one end"
    assert thirty == ids(30, 1) != ids(30, 2)
    assert set(ids(10, 1)) < set(thirty), "fewer are a part of more"
    odd = ids(20, 1, kinds=["b"])
    assert len(odd) == 20 and all(i % 2 for i in odd), "drawn from those of the kinds asked for"
    assert ids(30, 1, draw="first") == list(range(30))
    assert ids(900, 1) == list(range(90))


def test_a_source_keeps_short_answers_before_its_limit(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "train.jsonl"
    answers = [["one two three"], ["one two", "a much longer alias"], ["four", "5"], ["long one here", "short"]]
    rows = [{"id": str(i), "question": "q", "golden_answers": given} for i, given in enumerate(answers)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    short = SourceSettings(path=str(file), max_answer_words=2)
    assert [q.id for q in read_source(short, 0)] == ["1", "2"], "the first accepted answer counts"
    assert [q.id for q in read_source(short.model_copy(update={"limit": 1}), 0)] == ["1"]
    with caplog.at_level("INFO", "sleuth.run"):
        read_source(short, 0, tell=True)
        dev = read_dev(DataSettings(dev=str(file), dev_max_answer_words=1), 5, 0)
    assert [q.id for q in dev] == ["2"]
    assert [r.getMessage() for r in caplog.records] == [
        f"2 of 4 questions of {file} are kept, with answers of at most 2 words",
        f"1 of 4 questions of {file} are kept, with answers of at most 1 words",
    ]
    rows[2]["golden_answers"] = ["no short one"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    with pytest.raises(DataError, match=r"none of 4 questions of .* has an answer of at most 1 words"):
        read_dev(DataSettings(dev=str(file), dev_max_answer_words=1), None, 0)


def test_dev_questions_may_be_drawn_from_all_over_their_file(tmp_path: Path) -> None:
    file = tmp_path / "dev.jsonl"
    rows = [{"id": str(i), "question": "q", "golden_answers": ["a" if i % 2 else "a b"]} for i in range(200)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = DataSettings(dev=str(file), dev_draw="seeded", dev_max_answer_words=1)
    asked = [[int(q.id) for q in read_dev(data, limit, 0)] for limit in (20, 10)]
    assert len(asked[0]) == 20 and max(asked[0]) > 120 and all(i % 2 for i in asked[0])
    assert set(asked[1]) < set(asked[0]) and asked[0] != [int(q.id) for q in read_dev(data, 20, 1)]
    assert [q.id for q in read_dev(data.model_copy(update={"dev_draw": "first"}), 2, 0)] == ["1", "3"]


def loaded(path: Path | str) -> list[Question]:
    """What ``data.train: [{path: ...}]`` reads."""
    (questions,) = load_training_data(data_of(SourceSettings(path=str(path))), 0).sources
    return list(questions)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("name", ["q.jsonl", "q.json", "q.tsv", "q.csv"])
def test_questions_may_be_compressed(tmp_path: Path, name: str, suffix: str):
    rows = [{"question": "Who?", "answer": "Ann"}, {"question": "Where?", "answer": "Oslo"}]
    text = json.dumps(rows) if name == "q.json" else "".join(f"{json.dumps(row)}\n" for row in rows)
    if name in ("q.tsv", "q.csv"):
        text = "question,answer\nWho?,Ann\nWhere?,Oslo\n".replace(",", "\t" if name == "q.tsv" else ",")
    pack = {".gz": gzip.compress, ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True)}[suffix]
    (tmp_path / f"{name}{suffix}").write_bytes(pack(text.encode()))
    assert loaded(tmp_path / f"{name}{suffix}") == [
        Question("q-1", "Who?", ("Ann",)),
        Question("q-2", "Where?", ("Oslo",)),
    ]


PROMPT = (
    "Answer the given question. You must reason inside <think> and </think>. "
    "You may call a search engine by <search> query </search>. Question: {question}\n"
)


def prepared(source: str, question: str, answers: list[str], index: int) -> dict[str, Any]:
    """A row as Search-R1's preparation makes it for verl."""
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": PROMPT.format(question=question)}],
        "ability": "fact-reasoning",
        "reward_model": {"style": "rule", "ground_truth": {"target": answers}},
        "extra_info": {"split": "train", "index": index},
    }


@pytest.mark.parametrize("own", [{}, {"id": "train_0", "question": "released: Who?", "golden_answers": ["Ann"]}])
def test_parquet_of_search_r1(tmp_path: Path, own: dict[str, Any]):
    rows = [
        prepared("nq", "Who wrote it?", ["Ann", "Ann B."], 0) | own,
        prepared("hotpotqa", "Question: a film?", ["yes"], 0) | own,
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    asked = [own["question"]] * 2 if own else ["Who wrote it?", "Question: a film?"]
    assert loaded(tmp_path / "train.parquet") == [
        Question("nq-train-0", asked[0], ("Ann", "Ann B."), (), "nq"),
        Question("hotpotqa-train-0", asked[1], ("yes",), (), "hotpotqa"),
    ]
    only = load_training_data(data_of(SourceSettings(path=str(tmp_path / "train.parquet"), kinds=["nq"])), 0)
    assert len(only.sources[0]) == 1


def test_prepared_rows_keep_what_their_metadata_says_of_gold_passages(tmp_path: Path):
    golds = {"kind": "nq-distant", "pack": "nq", "gold_ids": ["p1", "p2"], "steps": []}
    (tmp_path / "q.jsonl").write_text(json.dumps(prepared("nq", "Who?", ["Ann"], 0) | {"metadata": golds}))
    (question,) = loaded(tmp_path / "q.jsonl")
    assert (question.kind, question.pack, question.alternatives) == ("nq", "nq", True)
    assert question.gold_ids == ("p1", "p2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": [{"role": "user", "content": "Use <search>. Who?"}]}, "row 1: its prompt has no 'Question:'"),
        ({"prompt": [{"role": "system", "content": "Question: who?"}]}, "row 1: 'prompt' is not a list of"),
        ({"reward_model": {"style": "rule", "ground_truth": {"target": []}}}, "row 1: no answers"),
        ({"reward_model": {"style": "rule", "ground_truth": {"target": [3]}}}, "row 1: 'ground_truth.target' is"),
    ],
)
def test_a_prepared_row_that_lacks_something_is_named(tmp_path: Path, changes: dict[str, Any], message: str):
    rows = [prepared("nq", "Who?", ["Ann"], 0) | changes]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=re.escape(f"train.parquet, {message}")):
        loaded(tmp_path / "train.parquet")


def test_a_bare_hub_name_is_read_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    train = Dataset.from_list([{"id": "t", "question": "Who?", "golden_answers": ["Ann"]}])
    monkeypatch.setattr("datasets.load_dataset", lambda name: DatasetDict(train=train))
    assert loaded("owner/name") == loaded("hf://owner/name") == [Question("t", "Who?", ("Ann",))]
    monkeypatch.setattr("datasets.load_dataset", lambda name: DatasetDict(train=train, dev=train))
    with pytest.raises(DataError, match=r"has the splits train, dev .name one: hf://owner/name/train"):
        loaded("owner/name")
    (tmp_path / "owner").mkdir()
    with pytest.raises(DataError, match="no file owner/name"):
        loaded("owner/name")


def test_a_bare_name_that_is_neither_file_nor_dataset_says_so(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(name: str) -> None:
        raise ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError) as caught:
        loaded("absent/owner")
    assert str(caught.value).startswith("there is no file absent/owner, and cannot load hf://absent/owner: Config name")
    assert "['a', 'b']" in str(caught.value) and "\n" not in str(caught.value)
