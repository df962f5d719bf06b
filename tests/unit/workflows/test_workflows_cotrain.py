"""Co-training: its settings, the part of a retriever that learns, and its guards."""

from __future__ import annotations

import json
import logging
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from agent.evaluate import _check_questions
from retrieval.config import RetrieverSettings
from retrieval.training.config import SourceSettings
from sleuth.errors import ConfigError, DataError, RetrieverError
from sleuth.leaks import Kept
from sleuth.runs import RunFolder
from sleuth.trajectories import to_line
from sleuth.types import Answer, Generation, Hit, Passage, Question, ScoredTrajectory, Search, Trajectory, Turn
from workflows.config import SourceSettings as QuestionFile
from workflows.cotrain.config import CotrainSettings, load_cotrain_run
from workflows.cotrain.context import Cotraining
from workflows.cotrain.families import learner_of, start_of, weights_of, with_learned
from workflows.cotrain.guards import answer_recall, compared, query_figures
from workflows.cotrain.learning import agent_settings
from workflows.cotrain.rows import (
    make_rows,
    questions_of_round,
    refuse_held_out,
    refuse_held_out_queries,
    watch_queries,
    without_golds,
)
from workflows.wiring import read_training

BASE = {
    "out": "runs/x",
    "policy": {"model": "policy"},
    "retriever": {"kind": "dense", "index": "index", "corpus": "corpus.jsonl", "encoder": "encoder"},
    "data": {"train": [{"path": "train.jsonl"}], "dev": "dev.jsonl"},
    "grpo": {"steps": 2},
}


def load(folder: Path, **changes):
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump({**BASE, **changes}))
    return load_cotrain_run(config)


def test_a_config_needs_no_section_of_its_own(tmp_path):
    run = load(tmp_path)
    assert run.cotrain.labels.kind == "outcomes"
    assert (run.cotrain.query_form, run.cotrain.agent) == ("query", "grpo")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"retriever": None}, "co-training needs a retriever"),
        ({"retriever": {"kind": "bm25", "index": "i"}}, "0 parts of the kind index of encoded passages"),
        ({"retriever": {"kind": "dense", "index": "i", "encoder": "e"}}, "retriever.corpus is missing"),
        ({"grpo": None}, "cotrain.agent grpo needs a section grpo"),
        ({"data": {"train": [{"path": "train.jsonl"}]}}, "needs data.train and data.dev"),
        ({"cotrain": {"agent": "frozen", "retriever": None}}, "nothing learns"),
        ({"cotrain": {"labels": {"kind": "outcome"}}}, "did you mean 'outcomes'"),
        ({"cotrain": {"labels": {"kind": "golds", "shared_credit": 1}}}, "shared_credit does nothing for a labels of"),
        ({"cotrain": {"retriever": {"reranker": {"backbone": "x"}}}}, "0 parts of the kind reranker"),
        (
            {"cotrain": {"retriever": {"reranker": {"backbone": "x"}, "training": {"steps": 3}}}},
            "training does nothing beside reranker",
        ),
        ({"cotrain": {"retriever": {"reranker": {}}}}, "0 parts of the kind reranker"),
        (
            {
                "cotrain": {
                    "query_form": "question_query",
                    "start": {
                        "encoder": {"backbone": "e", "settings": {"query_form": "query"}},
                        "data": [{"path": "d"}],
                    },
                }
            },
            "cotrain.start has query_form query, and cotrain has question_query",
        ),
    ],
)
def test_what_cannot_be_co_trained_is_refused_before_any_work(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, **changes)


DENSE = {"kind": "dense", "index": "runs/i", "corpus": "c.jsonl", "encoder": {"backbone": "e", "query_prompt": "q: "}}


def test_the_learned_encoder_takes_the_place_of_the_one_before_at_any_depth():
    settings = RetrieverSettings.of(
        kind="rerank", model="ce", inner={"kind": "hybrid", "parts": [{"kind": "bm25", "index": "b"}, DENSE]}
    )
    learner = learner_of(settings, reranker=False)
    changed = with_learned(settings, learner, Path("new/encoder"), Path("new/index"))
    again = learner_of(changed, reranker=False)
    assert (weights_of(learner), weights_of(again)) == ("e", "new/encoder")
    assert again.index == Path("new/index")
    assert again.encoder.query_prompt is None  # it is saved with the new weights
    assert changed.inner.parts[0] == settings.inner.parts[0]


def test_a_learned_reranker_leaves_what_it_ranks_as_it_is():
    settings = RetrieverSettings.of(kind="rerank", model="ce", inner=DENSE)
    changed = with_learned(settings, learner_of(settings, reranker=True), Path("new/ce"), Path())
    assert (changed.model, changed.inner) == ("new/ce", settings.inner)


def test_training_begins_with_the_encoder_as_the_config_opens_it_and_the_form_of_the_run():
    start = start_of(learner_of(RetrieverSettings.of(**DENSE), reranker=False), "question_query")
    assert start.backbone == "e"
    assert (start.choice.query_prompt, start.choice.query_form) == ("q: ", "question_query")


OSLO, FJORD = Passage("p", "Nalo", "Nalo was born in Oslo."), Passage("q", "Fjord", "A fjord.")


class Finds:
    """Finds what it is told to for each text."""

    def __init__(self, found, query_form="query"):
        self.found, self.query_form, self.asked = found, query_form, []

    def search(self, queries, k):
        self.asked += queries
        return [[Hit(p, 1.0, 1) for p in self.found.get(query, [])][:k] for query in queries]


def searched(*queries, identity="d1", text="Where was Nalo born?", answers=("Oslo",)):
    said = Generation((1,), (0.0,), "stop")
    turns = [Turn(said, f"<think> hm </think> <search> {query} </search>", Search(query)) for query in queries]
    return Trajectory(Question(identity, text, answers), (), (*turns, Turn(said, "", Answer("Oslo"))), "answer")


def test_held_out_searches_count_where_an_answer_stands_in_the_hits_of_any_query():
    found = Finds({"a": [FJORD], "b": [FJORD, OSLO]})
    assert answer_recall(found, [searched("a", "b"), searched("a", identity="d2")], 5) == {
        ("d1", "Where was Nalo born?"): 1.0,
        ("d2", "Where was Nalo born?"): 0.0,
    }
    assert answer_recall(found, [searched("b")], 1) == {("d1", "Where was Nalo born?"): 0.0}


def test_each_retriever_is_asked_in_its_own_form():
    found = Finds({}, "question_query")
    answer_recall(found, [searched("a")], 5)
    assert found.asked == ["a | Where was Nalo born?"]


def test_questions_whose_answer_is_no_evidence_are_no_held_out_searches():
    yes = searched("a", answers=("yes",))
    named = searched("a", text="Is Oslo or Rome older?")
    assert answer_recall(Finds({}), [yes, named, searched()], 5) == {}
    assert compared({}, {}) == {"n": 0}


def test_retrievers_are_compared_question_by_question():
    found = compared({("a", ""): 1.0, ("b", ""): 0.0, ("c", ""): 1.0}, {("a", ""): 0.0, ("b", ""): 0.0})
    assert (found["n"], found["before"], found["after"], found["difference"]) == (2, 0.5, 0.0, -0.5)


def test_dev_and_test_questions_are_known_by_id_and_by_text():
    kept = Kept.of([Question("d1", "Where was Nalo born?", ("Oslo",))])
    assert kept.why("d1", "Another question") == "id"
    assert kept.why("t1", "Another", "where was  NALO born") == "text"
    assert kept.why("t1", "Where was Tiru born?") == ""


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"question_id": "d1", "question": "x", "query": "x"}, "id"),
        ({"question_id": "t", "question": "where was Nalo born", "query": "x"}, "text"),
        ({"question_id": "t", "question": "x", "query": "Where was Nalo born?"}, "text"),
        ({"question_id": "t", "question": "x", "query": "Where was Nalo born? | a thought"}, "text"),
    ],
)
def test_a_row_of_a_dev_question_is_refused_at_the_door_of_the_training(tmp_path, row, why):
    path = tmp_path / "rows.jsonl"
    good = {"question_id": "t0", "question": "é?", "query": "Nalo"}
    path.write_text("\n".join(json.dumps(r) for r in (good, row)) + "\n")
    with pytest.raises(DataError, match=rf"line 2: the row is of a dev or test question, by its {why}"):
        refuse_held_out([path], Kept.of([Question("d1", "Where was Nalo born?", ("Oslo",))]))


def test_further_rows_that_ask_a_dev_question_are_refused_by_their_text(tmp_path):
    path, kept = tmp_path / "rows.jsonl", Kept.of([Question("2", "Where was Nalo born?", ("Oslo",))])
    queries = ["where is Oslo", "Where is Bergen?", "where was NALO born"]
    passages = [{"docid": "p", "title": "", "text": "Nalo was born in Oslo."}]
    lines = [json.dumps({"query": query, "positive_passages": passages}) + "\n" for query in queries]
    path.write_text("".join(lines[:2]))
    source = SourceSettings(path=str(path))
    refuse_held_out_queries([source], kept)  # a row without an id is called by its number, which may be a question's
    path.write_text("".join(lines))
    with pytest.raises(DataError, match=r"rows.jsonl: the row 3 asks a dev or test question"):
        refuse_held_out_queries([source], kept)


def test_what_is_known_of_golds_is_taken_away():
    question = Question("q", "text?", ("a",), ("T",), kind="bridge", gold_ids=("p",), alternatives=True)
    blank = without_golds(question)
    assert (blank.gold_ids, blank.supporting_titles, blank.alternatives) == ((), (), False)
    assert (blank.id, blank.text, blank.answers) == ("q", "text?", ("a",))


def rounds_in(folder: Path, golds: dict, labels: str = "outcomes", **cotrain) -> Cotraining:
    """Co-training on five questions, the last of them a dev question under another id; ``golds`` is known of each."""
    folder.mkdir()
    rows = [{"id": f"t{i}", "question": f"Who is {name}?", "golden_answers": ["x"]} for i, name in enumerate("abcde")]
    for name, some in (("train", rows), ("dev", [rows[4] | {"id": "d0", "question": "WHO is  e"}])):
        lines = (json.dumps(row | {"metadata": golds}) + "\n" for row in some)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    data = {"train": [{"path": str(folder / "train.jsonl")}], "dev": str(folder / "dev.jsonl"), "leaks": "keep"}
    run = load(folder, data=data, cotrain={"questions": 2, "labels": labels, **cotrain})
    return Cotraining(run, RunFolder(folder / "out"), lambda _title: nullcontext())


GOLDS = {"gold_ids": ["p1"], "supporting_titles": ["Title"]}


def test_what_is_played_is_the_same_whatever_is_known_of_golds(tmp_path):
    known, unknown = rounds_in(tmp_path / "known", GOLDS), rounds_in(tmp_path / "unknown", {})
    for number in (1, 2):
        (mine, _), (theirs, _) = (questions_of_round(run, number) for run in (known, unknown))
        assert mine == theirs
        assert not any(one.gold_ids or one.supporting_titles for one in mine)
    asked = questions_of_round(rounds_in(tmp_path / "golds", GOLDS, "golds"), 1)[0]
    assert all(one.gold_ids == ("p1",) for one in asked)


def test_rounds_go_on_through_the_questions_and_never_play_one_of_dev(tmp_path, caplog):
    run = rounds_in(tmp_path / "run", {})
    (first, counts), (second, _) = questions_of_round(run, 1), questions_of_round(run, 2)
    assert {one.id for one in (*first, *second)} == {"t0", "t1", "t2", "t3"}
    assert counts == {"refused_by_text": 1}
    assert "1 training questions are dev or test questions and never train" in caplog.text


def test_two_files_may_have_the_same_ids_and_the_agent_trains_on_no_dev_question_either(tmp_path):
    run = rounds_in(tmp_path / "run", {})
    again = [{"id": "t0", "question": f"Where is {name}?", "golden_answers": ["x"]} for name in "a"]
    (tmp_path / "run" / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in again))
    sources = [*run.settings.data.train, QuestionFile(path=str(tmp_path / "run" / "more.jsonl"))]
    run.settings = run.settings.model_copy(update={"data": run.settings.data.model_copy(update={"train": sources})})
    asked, _ = questions_of_round(run, 1)
    more, _ = questions_of_round(run, 2)
    _check_questions([*asked, *more])
    trained = read_training(agent_settings(run, 1).data, 0)
    assert [[one.id for one in questions] for questions in trained[0]] == [["t0", "t1", "t2", "t3"], ["t0"]]
    assert trained[1].asked == 1


@pytest.mark.parametrize(
    ("stops", "scored", "ends"), [({"worker_lost": 1}, 3, True), ({"reward_failed": 1}, 3, False), ({"x": 4}, 0, True)]
)
def test_questions_that_were_not_played_end_the_stage(tmp_path, monkeypatch, caplog, stops, scored, ends):
    run = rounds_in(tmp_path / "run", {})
    overall = SimpleNamespace(n=4, scored=scored)
    report = SimpleNamespace(unscored=4 - scored, overall=overall, stops=stops, failures={"its worker": 4 - scored})
    monkeypatch.setattr(Cotraining, "open_after", lambda *_: None)
    monkeypatch.setattr("workflows.play.Opened.driver", lambda *_: None)
    monkeypatch.setattr("agent.evaluate.evaluate", lambda *_args, **_rest: report)
    out = run.layout.round(1).evaluation("dev")
    if ends:
        with pytest.raises(RetrieverError, match="of 4 questions could not be scored"):
            run.play("round 1: dev", [], "policy", 0, out)
    else:
        run.play("round 1: dev", [], "policy", 0, out)
        assert "1 of 4 questions could not be scored" in caplog.text


def test_a_query_that_is_a_dev_question_makes_no_row(tmp_path):
    run = rounds_in(tmp_path / "run", {}, group_size=2)
    sample, other = run.layout.round(1).rollouts.samples(2)
    found = Hit(Passage("p", "P", "x was here."), 1.0, 1)
    for number, asked in ((1, "who is E?"), (2, "who is it")):
        (sample, other)[number - 1].folder.mkdir(parents=True)
        played = searched(asked, identity=f"t{number}", text=f"Who is {number}?", answers=("Oslo", "x"))
        turn = replace(played.turns[0], hits=(found,))
        played = replace(played, turns=(turn, *played.turns[1:]))
        (sample, other)[number - 1].trajectories.write_text(to_line(ScoredTrajectory(played, None)))
    figures = make_rows(run, 1)
    assert (figures["rows"], figures["refused"], figures["right"]) == (1, 1, 1.0)
    (row,) = map(json.loads, run.layout.round(1).rows.read_text().splitlines())
    assert (row["query"], row["question_id"]) == ("who is it", "t2")


def test_a_training_file_of_dev_questions_alone_is_refused(tmp_path):
    run = rounds_in(tmp_path / "run", {})
    (tmp_path / "run" / "train.jsonl").write_text((tmp_path / "run" / "dev.jsonl").read_text())
    with pytest.raises(DataError, match="every question of a training file is a dev or test question"):
        questions_of_round(run, 1)


def test_how_varied_queries_are():
    rows = [searched("Nalo", "nalo!", identity="a"), searched("Where was Nalo born", identity="b")]
    assert query_figures(rows) == {"queries": 3, "distinct": 1.0, "copied": 1 / 3, "repeated": 1 / 3}
    assert query_figures([]) == {"queries": 0, "distinct": 0.0, "copied": 0.0, "repeated": 0.0}


def test_a_collapse_of_queries_is_said(caplog):
    run = SimpleNamespace(chosen=CotrainSettings())
    varied = {"queries": 9, "distinct": 1.2, "copied": 0.1, "repeated": 0.0}
    with caplog.at_level(logging.WARNING):
        watch_queries(run, 1, varied)
        watch_queries(run, 1, query_figures([]))
        assert not caplog.records
        watch_queries(run, 2, {**varied, "distinct": 0.1})
    assert "round 2: the agent's queries collapse: different questions ask the same" in caplog.text
