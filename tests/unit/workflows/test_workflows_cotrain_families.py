"""A round's retriever learns from its rows and is swapped in, whatever its family."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.labelling.searches import Label, to_row
from retrieval.encoders.config import ScratchSettings, preset
from retrieval.encoders.loading import new_encoder
from retrieval.encoders.scratch import make_backbone
from retrieval.open import open_retriever
from sleuth.errors import ArtifactError, DataError
from sleuth.query_forms import form_of
from sleuth.runs import RunFolder
from sleuth.settings import validate
from sleuth.trajectories import to_line
from sleuth.types import Answer, Generation, Hit, Passage, Question, ScoredTrajectory, Search, Trajectory, Turn
from workflows.cotrain.config import CotrainRun
from workflows.cotrain.context import Cotraining, stage_name
from workflows.cotrain.learning import agent_settings, guard, index_passages, train_retriever

WORDS = ["amber", "birch", "coral", "delta", "ember", "fjord", "grove", "heath", "islet", "jetty", "knoll", "larch"]
PASSAGES = [
    Passage(f"p{i}", word.capitalize(), f"This is about {word}, as nobody knew.") for i, word in enumerate(WORDS)
]
TRAINED = {"kind": "in_batch", "batch_size": 6, "steps": 12, "learning_rate": 3e-3, "hard_negatives": 1}
FROZEN = TRAINED | {"kind": "frozen_passages", "against": "all"}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "dense": ("plain", TRAINED),
    "frozen": ("plain", FROZEN),
    "sparse": ("splade", TRAINED | {"regulariser": {"query": 0, "passage": 0}}),
    "multivector": ("colbert", TRAINED),
}
LIMITS = {"query_max_tokens": 16, "passage_max_tokens": 16}


@contextmanager
def quiet(_title: str):
    yield lambda _done, _total: None


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone") / "bert"
    texts = [f"{p.title} {p.text}" for p in PASSAGES] + ["tell of | who knew ?"]
    size = {"vocabulary": 100, "hidden_size": 32, "layers": 1, "heads": 2, "max_positions": 64, "dropout": 0.0}
    make_backbone(folder, texts, ScratchSettings.model_validate(size | {"masked_lm": True}))
    return folder


def questions() -> list[Question]:
    return [Question(f"t{i}", f"who knew {word} ?", (word,), file="train.jsonl") for i, word in enumerate(WORDS)]


def run_in(folder: Path, retriever: dict[str, Any], learning: dict[str, Any], form: str = "query") -> Cotraining:
    """Co-training of one round whose rollouts are made and labelled, and whose dev questions were searched."""
    (folder / "corpus.jsonl").write_text(
        "".join(json.dumps({"_id": p.id, "title": p.title, "text": p.text}) + "\n" for p in PASSAGES)
    )
    for name, ids in (("train", "t"), ("dev", "d")):
        rows = [{"id": f"{ids}0", "question": f"{name} question?", "golden_answers": ["x"]}]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "out": str(folder / "run"),
        "policy": {"model": "none"},
        "retriever": retriever | {"corpus": str(folder / "corpus.jsonl")} if "inner" not in retriever else retriever,
        "data": {"train": [{"path": str(folder / "train.jsonl")}], "dev": str(folder / "dev.jsonl")},
        "cotrain": {"rounds": 1, "agent": "frozen", "query_form": form, "retriever": learning},
    }
    run = Cotraining(validate(CotrainRun, values, "test"), RunFolder(folder / "run"), quiet)
    round_0, round_1 = run.layout.round(0), run.layout.round(1)
    round_1.folder.mkdir(parents=True)
    labels = [
        (Label(f"tell of {w}", PASSAGES[i], 1.0, (PASSAGES[i - 1],)), q)
        for i, (w, q) in enumerate(zip(WORDS, questions(), strict=True))
    ]
    round_1.rows.write_text(
        "".join(json.dumps(to_row(one, q, form, f"r{i}")) + "\n" for i, (one, q) in enumerate(labels))
    )
    round_0.evaluation("dev").folder.mkdir(parents=True)
    searched = (ScoredTrajectory(searches(word), 0.0) for word in WORDS)
    round_0.evaluation("dev").trajectories.write_text("".join(map(to_line, searched)))
    return run


def searches(word: str) -> Trajectory:
    said, hits = Generation((1,), (0.0,), "stop"), (Hit(PASSAGES[0], 1.0, 1),)
    turns = (Turn(said, "<search>", Search(f"tell of {word}"), hits), Turn(said, "", Answer(word)))
    return Trajectory(Question(f"d-{word}", "who knew it?", (word,)), (), turns, "answer")


def one_round(run: Cotraining) -> dict[str, Any]:
    """The stages from rows to swap; returns what the guard found."""
    run.open_after(0)  # made when the start is evaluated
    for name, work in (
        ("retriever", lambda: train_retriever(run, 1, quiet)),
        ("index", lambda: index_passages(run, 1)),
    ):
        run.folder.mark_done(stage_name(1, name), work())
    run.folder.mark_done(stage_name(1, "guard"), guard(run, 1))
    return run.info(1, "guard")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_learns_is_indexed_and_swapped_in(family: str, backbone: Path, tmp_path: Path):
    name, training = FAMILIES[family]
    new_encoder(preset(name, str(backbone), **LIMITS), seed=0).save(tmp_path / "encoder")
    kind = {"plain": "dense", "splade": "sparse", "colbert": "multivector"}[name]
    start = {"kind": kind, "index": str(tmp_path / "index"), "encoder": str(tmp_path / "encoder")}
    run = run_in(tmp_path, start, {"training": training})
    found = one_round(run)
    assert found["n"] == len(WORDS)
    assert found["swapped"] and found["after"] > found["before"], found
    after = run.open_after(1)
    assert after.fingerprint == run.info(1, "index")["fingerprint"] != run.open_after(0).fingerprint
    index = run.retriever(1).index
    assert index == (tmp_path / "index" if family == "frozen" else run.layout.round(1).index)


def test_the_form_of_the_run_is_that_of_rows_encoder_and_retriever(backbone: Path, tmp_path: Path):
    new_encoder(preset("plain", str(backbone), **LIMITS), seed=0).save(tmp_path / "encoder")
    start = {"kind": "dense", "index": str(tmp_path / "index"), "encoder": str(tmp_path / "encoder")}
    run = run_in(tmp_path, start, {"training": TRAINED}, "question_query")
    one_round(run)
    assert form_of(run.open_after(0)) == "query"
    assert form_of(run.open(run.candidate(1))) == "question_query"
    manifest = json.loads((run.layout.round(1).index / "manifest.json").read_text())
    assert manifest["encoder"]["settings"]["query_form"] == "question_query"


def test_a_worse_retriever_is_not_swapped_in_and_the_next_round_begins_with_the_one_before(
    backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    new_encoder(preset("plain", str(backbone), **LIMITS), seed=0).save(tmp_path / "encoder")
    start = {"kind": "dense", "index": str(tmp_path / "index"), "encoder": str(tmp_path / "encoder")}
    run = run_in(tmp_path, start, {"training": TRAINED})
    assert one_round(run)["swapped"]
    worse = run_in(tmp_path_of(tmp_path, "worse"), swapped(run), {"training": TRAINED | {"learning_rate": 0.5}})
    found = one_round(worse)
    assert found["after"] < found["before"] and not found["swapped"]
    assert "is worse and is NOT swapped in: the agent keeps the one before" in caplog.text
    assert worse.open_after(1).fingerprint == run.open_after(1).fingerprint


def tmp_path_of(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


def swapped(run: Cotraining) -> dict[str, Any]:
    layout = run.layout.round(1)
    return {"kind": "dense", "index": str(layout.index), "encoder": str(layout.retriever.encoder)}


def test_an_index_that_does_not_fit_its_encoder_is_refused(backbone: Path, tmp_path: Path):
    new_encoder(preset("plain", str(backbone), **LIMITS), seed=0).save(tmp_path / "encoder")
    start = {"kind": "dense", "index": str(tmp_path / "index"), "encoder": str(tmp_path / "encoder")}
    run = run_in(tmp_path, start, {"training": TRAINED})
    run.folder.mark_done(stage_name(1, "retriever"), train_retriever(run, 1, quiet))
    other = run.retriever(0).model_copy(update={"index": run.layout.round(1).index})
    open_retriever(other, resilient=False)  # another encoder has made what lies there
    with pytest.raises(ArtifactError, match="was made with another encoder"):
        index_passages(run, 1)


def test_a_row_of_a_dev_question_stops_the_training(backbone: Path, tmp_path: Path):
    new_encoder(preset("plain", str(backbone), **LIMITS), seed=0).save(tmp_path / "encoder")
    start = {"kind": "dense", "index": str(tmp_path / "index"), "encoder": str(tmp_path / "encoder")}
    run = run_in(tmp_path, start, {"training": TRAINED})
    label = Label("tell of x", PASSAGES[0], 1.0, ())
    row = to_row(label, replace(questions()[0], text="Dev question"), "query", "r99")
    with run.layout.round(1).rows.open("a") as rows:
        rows.write(json.dumps(row) + "\n")
    with pytest.raises(DataError, match="line 13: the row is of a dev or test question, by its text"):
        train_retriever(run, 1, quiet)


def test_an_adapter_is_trained_on_without_a_second_one_and_the_gate_is_passed_once(tmp_path: Path):
    values = {
        "out": str(tmp_path / "run"),
        "policy": {"model": str(tmp_path)},
        "retriever": {"kind": "dense", "index": "i", "corpus": "c", "encoder": "e"},
        "data": {"train": [{"path": "train.jsonl"}], "dev": "dev.jsonl", "test": "test.jsonl"},
        "grpo": {"gate": {}, "lora": {"r": 4}},
    }
    run = Cotraining(validate(CotrainRun, values, "test"), RunFolder(tmp_path / "run"), quiet)
    whole = agent_settings(run, 1)
    assert (whole.grpo.gate, whole.grpo.lora.r, whole.warmstart) == (None, 4, None)
    assert (whole.data.test, whole.data.repeats) == ("test.jsonl", "drop")  # what the run may not train on
    assert whole.out == run.layout.round(1).agent.out
    (tmp_path / "adapter_config.json").write_text("{}")
    assert agent_settings(run, 1).grpo.lora is None


def test_a_reranker_learns_from_the_same_rows(backbone: Path, tmp_path: Path):
    new_encoder(preset("plain", str(backbone), **LIMITS), seed=0).save(tmp_path / "encoder")
    inner = {"kind": "dense", "index": str(tmp_path / "index"), "encoder": str(tmp_path / "encoder")}
    inner |= {"corpus": str(tmp_path / "corpus.jsonl")}
    reranker = {"backbone": "x", "batch_size": 6, "steps": 3, "hard_negatives": 1, "max_tokens": 32}
    run = run_in(tmp_path, {"kind": "rerank", "model": str(backbone), "inner": inner}, {"reranker": reranker})
    run.folder.mark_done(stage_name(1, "retriever"), train_retriever(run, 1, quiet))
    run.folder.mark_done(stage_name(1, "index"), index_passages(run, 1))
    after = run.candidate(1)
    assert after.model == str(run.layout.round(1).retriever.reranker)
    assert after.inner == run.retriever(0).inner
    assert open_retriever(after).fingerprint == run.info(1, "index")["fingerprint"]
