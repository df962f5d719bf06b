"""Gold ids that no passage has are told at the start; training questions about what is measured with are left out."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retrieval.documents import find_passages
from retrieval.store import PassageStore, StoreWriter
from sleuth.errors import ArtifactError, DataError
from sleuth.leaks import Leaks
from sleuth.runs import RunFolder
from sleuth.settings import validate
from sleuth.types import Hit, Passage, Question
from workflows import stages
from workflows.checks import check_inputs, say_leaks
from workflows.config import DataSettings, RunSettings
from workflows.context import StageContext
from workflows.golds import check_golds, questions_of
from workflows.wiring import held_out, load_training_data, read_questions, read_training


class Shelf:
    """Finds nothing, but knows its passages by id."""

    fingerprint = "shelf"

    def __init__(self, folder: Path, *names: str) -> None:
        with StoreWriter(folder) as store:
            store.add([Passage(name, "T", "x") for name in names])
        self.documents = PassageStore(folder)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[] for _ in queries]


def asked(*ids: str, file: str = "dev.jsonl") -> Question:
    return Question("-".join(ids), "?", ("a",), ("T",), file=file, gold_ids=ids)


def test_golds_that_are_there_are_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shelf = Shelf(tmp_path, "p1", "p2::w0", "p2::w1")
    check_golds([asked("p1", "p2"), asked("p1"), asked("p2::w1"), asked()], shelf, "shelf")
    assert not caplog.messages


def test_some_that_are_missing_are_counted_file_by_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    questions = [asked("p1", "lost"), asked("lost", "gone::w3"), asked("p1", file="train.jsonl")]
    check_golds(questions, Shelf(tmp_path, "p1"), "runs/index")
    said = (
        "dev.jsonl lists 3 gold passages by id, of which 2 are not in runs/index and never found: the first is 'lost'"
    )
    assert caplog.messages == [said]


def test_none_that_is_there_is_refused(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, "p1")
    with pytest.raises(DataError, match=r"^train.jsonl lists 2 gold .* none is in shelf: the first is 'x'") as caught:
        check_golds([asked("p1"), asked("x", "y", file="train.jsonl")], shelf, "shelf")
    assert "data.gold=title" in str(caught.value)


@pytest.mark.parametrize("documents", [None, SimpleNamespace(document=lambda name: [])])
def test_a_retriever_that_finds_nothing_by_id_is_taken_at_its_word(documents: Any) -> None:
    service: Any = SimpleNamespace(documents=documents, search=lambda queries, k: [], fingerprint="")
    assert find_passages(service, ["p"]) is None
    check_golds([asked("p1")], service, "http://there")


def row(name: str, titles: Sequence[str] = (), ids: Sequence[str] = ()) -> dict[str, Any]:
    known = {"supporting_titles": list(titles), "gold_ids": list(ids), "kind": "single"}
    return {"id": name, "question": f"{name}?", "golden_answers": ["a"], "metadata": known}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    rows = {
        "train": [row("t1", ["Oslo"], ["p1"]), row("t2", ["Rome"], ["p2"]), row("t3", ["Paris"], ["p3"])],
        "more": [row("m1", ["Bergen"], ["p9"])],
        "dev": [row("d1", ["Oslo", "Nice"], ["p7", "p8"])],
        "test": [row("e1", ["Lyon"], ["p2"])],
    }
    for name, some in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in some))
    return {name: str(tmp_path / f"{name}.jsonl") for name in rows}


def data_of(files: dict[str, str], *train: str, **more: Any) -> DataSettings:
    values = {"train": [{"path": files[name]} for name in train], "dev": files["dev"], "test": files["test"], **more}
    return validate(DataSettings, values, "data")


def test_training_questions_about_dev_or_test_are_dropped(files: dict[str, str]) -> None:
    data = data_of(files, "train", "more")
    sources, leaks = read_training(data, 0)
    assert [[question.id for question in source] for source in sources] == [["t3"], ["m1"]]
    assert leaks == Leaks(of=4, by_passage=1, by_title=1)
    assert [q.id for q in load_training_data(data, 0).questions] == ["t3", "m1"]
    kept = data_of(files, "train", leaks="keep")
    assert (len(load_training_data(kept, 0).questions), held_out(kept).questions) == (3, 0)


def test_a_source_of_leaks_alone_is_refused(files: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"every question of .*dev.jsonl shares .*data.leaks=keep"):
        read_training(data_of(files, "dev"), 0)


def test_what_is_dropped_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "sleuth.run")
    say_leaks(Leaks(of=12_221), "training questions")
    say_leaks(Leaks(12_221, 22, 1111), "training questions")
    assert caplog.messages == [
        "1,133 of 12,221 training questions are dropped: they share a gold passage (22) or a gold title alone (1,111)"
        " with a question of data.dev or data.test; data.leaks=keep keeps them"
    ]


def test_golds_by_title_list_no_ids(files: dict[str, str]) -> None:
    data = data_of(files, "train", gold="title")
    assert not any(question.gold_ids for question in (*questions_of(data, 0), *load_training_data(data, 0).questions))
    assert all(question.supporting_titles for question in questions_of(data, 0))
    assert [len(q.gold_ids) for q in read_questions(files["dev"])] == [2]


def settings(tmp_path: Path, data: DataSettings, **more: Any) -> RunSettings:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 8192}')
    values = {"out": str(tmp_path / "run"), "policy": {"model": str(tmp_path)}, "data": data.model_dump(), "grpo": {}}
    return validate(RunSettings, {**values, "retriever": {"kind": "remote", "url": "http://there"}, **more}, "run.yaml")


def test_a_run_checks_golds_before_its_first_stage_and_says_what_leaks(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sleuth.run")
    monkeypatch.setattr("workflows.context.make_retriever", lambda _settings: Shelf(tmp_path / "shelf", "q1"))
    given = settings(tmp_path, data_of(files, "train"))
    with pytest.raises(DataError, match="none is in http://there"):
        stages.run_stages(given, resume=False, overwrite=False)
    assert [message[:32] for message in caplog.messages] == ["2 of 3 training questions are dr"]
    by_title = settings(tmp_path, data_of(files, "train", gold="title"))
    for chosen in (by_title, settings(tmp_path, given.data, environment={"kind": "direct"})):
        stages._check_golds(StageContext(chosen, RunFolder(chosen.out), resume=False), "grpo")


def test_a_run_begun_when_all_questions_were_kept_keeps_them(tmp_path: Path, files: dict[str, str]) -> None:
    dropping = settings(tmp_path, data_of(files, "train"))
    saved = dropping.model_dump(mode="json")
    for name in ("leaks", "gold"):
        del saved["data"][name]
    check_inputs(dropping, "grpo")
    with RunFolder(dropping.out).claim(saved):
        pass
    with pytest.raises(ArtifactError, match=r"data.leaks = 'keep', not 'drop'"):
        stages.run_stages(dropping, resume=True, overwrite=False)
