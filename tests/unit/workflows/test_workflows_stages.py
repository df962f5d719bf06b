"""What a run refuses before and between its stages, and what it says when it is stopped."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.demonstrate import why_dropped
from agent.evaluate import AnswerFigures, EvaluationReport, SearchFigures
from cli.options import resume_command
from sleuth.errors import ArtifactError, ConfigError, DataError, RetrieverError
from sleuth.failures import causes
from sleuth.layout import GrpoOutcome, RunLayout, read_record, write_record
from sleuth.runs import RunFolder
from sleuth.settings import validate
from sleuth.trajectories import to_line
from sleuth.types import (
    Answer,
    Generation,
    Hit,
    Passage,
    Question,
    ScoredTrajectory,
    Search,
    Segment,
    Trajectory,
    Turn,
)
from workflows import stages
from workflows.checks import check_inputs
from workflows.cluster import train_on_cluster
from workflows.config import RunSettings
from workflows.context import StageContext
from workflows.play import Opened, _identity, _reread, play
from workflows.wiring import read_dev


def settings(tmp_path: Path, **more: Any) -> RunSettings:
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"id": "1", "question": "who?", "golden_answers": ["a"]}) + "\n")
    data = {"train": [{"path": str(questions)}], "dev": str(questions)}
    (tmp_path / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 8192}')
    values = {"out": str(tmp_path / "run"), "policy": {"model": str(tmp_path)}, "data": data, "grpo": {}, **more}
    return validate(RunSettings, values, "run.yaml")


def test_a_policy_that_never_searches_is_trained_and_evaluated_without_a_retriever(tmp_path: Path) -> None:
    check_inputs(settings(tmp_path, environment={"kind": "direct"}), "grpo")


def test_an_evaluation_begun_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    asked = settings(tmp_path)
    now = _identity(asked, None)
    then = json.loads(json.dumps(now))
    for name in ("system", "chat_template_kwargs", "date"):
        del then["environment"][name]
    assert then != now
    assert _reread(asked, then) == now
    then["environment"]["turns"] = 2
    then["environment"]["searches"] = 1
    assert _reread(asked, then) != now


@pytest.mark.parametrize(
    "more",
    [
        {"environment": {"kind": "search"}},
        {"environment": {"kind": "rag"}},
        {"environment": {"kind": "direct"}, "evaluation": {"modes": ["direct", "search"]}},
        {"environment": {"kind": "direct"}, "evaluation": {"start_modes": ["rag"]}},
    ],
)
def test_what_will_search_needs_a_retriever_from_the_start(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs a retriever"):
        check_inputs(settings(tmp_path, **more), "grpo")


class Shelf:
    def __init__(self, name: str) -> None:
        self.fingerprint = name

    def search(self, queries: list[str], k: int) -> list[list[Hit]]:
        return [[] for _ in queries]


def test_a_run_goes_on_with_its_own_index_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(tmp_path, environment={"kind": "direct"})
    given.out.mkdir()
    for name in ("one", "one"):
        monkeypatch.setattr("workflows.context.make_retriever", lambda _settings, name=name: Shelf(name))
        assert StageContext(given, RunFolder(given.out), True).open_retriever() is not None
    monkeypatch.setattr("workflows.context.make_retriever", lambda _settings: Shelf("two"))
    with pytest.raises(ArtifactError, match="another index"):
        StageContext(given, RunFolder(given.out), True).open_retriever()


def test_training_that_ended_on_a_cluster_is_not_begun_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = settings(tmp_path, environment={"kind": "direct"}, cluster={"learners": 2})
    layout = RunLayout(given.out)
    write_record(layout.grpo.outcome, {"policy": "/gone", "best_step": 3, "best_em": 0.5, "last_step": 4})
    write_record(layout.grpo.counts, {"questions": 24})
    monkeypatch.setattr("agent.cluster.roles.open_roles", lambda *_args: pytest.fail("no cluster is needed"))
    assert given.cluster is not None
    resumed = StageContext(given, RunFolder(given.out), resume=True)
    assert train_on_cluster(resumed, given.cluster) == GrpoOutcome(3, 0.5, 4)
    assert read_record(layout.grpo.counts) == {"questions": 24}


def test_the_command_that_goes_on_is_the_one_that_was_given() -> None:
    command = resume_command("warmstart", Path("a b.yaml"), ["grpo.steps=3", "data.dev=x y"], Path("runs/b"))
    words = ["sleuth", "warmstart", "a b.yaml", "--set", "grpo.steps=3", "--set", "data.dev=x y"]
    assert shlex.split(command) == [*words, "--out", "runs/b", "--resume"]
    assert resume_command("train", Path("a.yaml"), [], None) == "sleuth train a.yaml --resume"


def test_a_warm_start_may_learn_from_right_rollouts_alone(tmp_path: Path) -> None:
    rewards = {"sample-1": [1.28, None, 0.1], "sample-2": [1.0, 0.0, 1.3]}
    for name, found in rewards.items():
        (tmp_path / name).mkdir()
        asked = [Question(f"{name}/{i}", "who?", ("a",)) for i in range(len(found))]
        played = [Trajectory(question, (Segment("prompt", (1,)),), (), "answer") for question in asked]
        rows = [to_line(ScoredTrajectory(one, reward)) for one, reward in zip(played, found, strict=True)]
        (tmp_path / name / "trajectories.jsonl").write_text("".join(rows))
    ids = [t.question.id for t in stages._learned_from(tmp_path, 1.0)]
    assert ids == ["sample-1/0", "sample-2/0", "sample-2/2"]
    assert len(stages._learned_from(tmp_path, None)) == 6
    assert len(stages._learned_from(tmp_path / "sample-1", 0.0)) == 2
    with pytest.raises(DataError, match="lower warmstart"):
        stages._learned_from(tmp_path, 2.0)
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="other has no trajectories"):
        stages._learned_from(tmp_path / "other", None)
    with pytest.raises(ConfigError, match="min_reward needs trajectories"):
        settings(tmp_path, warmstart={"min_reward": 1.0})


def test_given_trajectories_about_what_a_dev_question_asks_are_not_learnt_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dev = {"id": "d", "question": "which?", "golden_answers": ["b"], "metadata": {"gold_ids": ["p1"]}}
    (tmp_path / "dev.jsonl").write_text(json.dumps(dev) + "\n")
    asked = [Question(name, "who?", ("a",), gold_ids=(f"{name}::w0",)) for name in ("p1", "p2")]
    played = [Trajectory(question, (Segment("prompt", (1,)),), (), "answer") for question in asked]
    rows = [to_line(ScoredTrajectory(one, 1.0)) for one in played]

    def learned(*lines: str, **data: Any) -> list[str]:
        given = tmp_path / "given.jsonl"
        given.write_text("".join(lines))
        sources = {"train": [{"path": str(tmp_path / "q.jsonl")}], "dev": str(tmp_path / "dev.jsonl"), **data}
        run = settings(tmp_path, data=sources, warmstart={"trajectories": str(given)})
        assert run.warmstart is not None
        context = stages.StageContext(run, RunFolder(run.out), resume=False)
        return [one.question.id for one in stages._learned(context, run.warmstart)[0]]

    with caplog.at_level("INFO", logger="sleuth"):
        assert learned(*rows) == ["p2"]
    assert "1 of 2 trajectories are dropped" in caplog.text
    assert learned(*rows, leaks="keep") == ["p1", "p2"]
    with pytest.raises(DataError, match="every question of"):
        learned(rows[0])


def test_a_demonstration_met_its_titles_however_a_corpus_writes_them() -> None:
    found = Hit(Passage("p", "Beyonce\u0301_Knowles", "She is from Houston."), 1.0, 1)
    said = Generation((1,), (0.0,), "stop")
    turns = (Turn(said, "", Search("who"), (found,), "She is from Houston."), Turn(said, "", Answer("houston")))
    question = Question("q", "who?", ("Houston",), ("Beyonc\u00e9 Knowles",))
    trajectory = Trajectory(question, (Segment("prompt", (1,)),), turns, "answer")
    assert why_dropped(trajectory, require_titles=True) == ""
    other = replace(trajectory, question=replace(question, supporting_titles=("Other",)))
    assert why_dropped(other) == "" and "passages" in why_dropped(other, require_titles=True)
    guessed = replace(trajectory, turns=(turns[0], replace(turns[1], action=Answer("Dallas"))))
    assert why_dropped(guessed) == "its answer does not stand in what was read"


@pytest.mark.parametrize(
    ("stops", "scored", "failures", "ends"),
    [
        ({"answer": 7, "retriever_failed": 1}, 7, {"the retriever": 1}, True),
        ({"environment_failed": 8}, 0, {"the environment": 8}, True),
        ({"answer": 7, "environment_failed": 1}, 7, {"the environment": 1}, False),
        ({"answer": 8}, 7, {"the reward f1": 1}, False),
    ],
)
def test_an_evaluation_between_stages_ends_the_run_only_if_a_retry_may_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, stops, scored, failures, ends
) -> None:
    figures = AnswerFigures(8, scored, {"em": 0.5}, {})
    none = SearchFigures(0, None, None)
    report = EvaluationReport(figures, {}, 0.0, 1.0, 0.0, none, none, none, 9.0, 3.0, 0.5, stops, failures=failures)
    monkeypatch.setattr(stages, "make_policy", lambda _settings: (None, None))
    monkeypatch.setattr("agent.evaluate.evaluate", lambda *_args, **_more: report)
    chosen = settings(tmp_path, environment={"kind": "direct"})
    run = StageContext(chosen, RunFolder(chosen.out), resume=False)
    said = f"{8 - scored} of 8 questions of the evaluation grpo-direct could not be scored ({causes(failures)})"
    if ends:
        with pytest.raises(RetrieverError, match=f"^{re.escape(said)}"):
            stages.evaluate_policy(run, "grpo", "direct")
    else:
        assert stages.evaluate_policy(run, "grpo", "direct")["em"] == 0.5
        assert caplog.messages == [f"{said}; no mean includes them"]


def test_an_evaluation_of_a_runs_own_dev_questions_draws_them_as_the_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = ["a", "a b c", "c", "d", "e"]
    rows = [{"id": str(n), "question": f"who {n}?", "golden_answers": [a]} for n, a in enumerate(answers)]
    (tmp_path / "dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"dev": str(tmp_path / "dev.jsonl"), "dev_draw": "seeded", "dev_max_answer_words": 2}
    run = settings(tmp_path, data=data, environment={"kind": "direct"}, evaluation={"limit": 2}, grpo=None)
    asked: list[Question] = []

    class PlayedError(Exception):
        """Nothing is to be played."""

    def played(_driver: object, questions: list[Question], **_rest: object) -> None:
        asked.extend(questions)
        raise PlayedError

    monkeypatch.setattr("agent.evaluate.evaluate", played)
    monkeypatch.setattr("workflows.wiring.make_policy", lambda _settings: (None, None))
    monkeypatch.setattr("workflows.wiring.make_driver", lambda *_rest: None)
    with pytest.raises(PlayedError):
        play(run, tmp_path / "out", Opened(), resume=False, overwrite=False)
    assert asked == read_dev(run.data, 2, run.seed) and len(asked) == 2
    assert all(len(question.answers[0].split()) == 1 for question in asked)
