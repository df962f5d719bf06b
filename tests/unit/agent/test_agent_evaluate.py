"""Evaluation counts what it says it counts, and goes on where it was killed."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agent.evaluate import evaluate, summarise
from sleuth.errors import DataError
from sleuth.trajectories import read_trajectories
from sleuth.types import (
    Action,
    Answer,
    Generation,
    Hit,
    Invalid,
    Passage,
    Question,
    Sampling,
    ScoredTrajectory,
    Search,
    Segment,
    StopReason,
    Trajectory,
    Turn,
)


def exact(prediction: str | None, answers: Sequence[str]) -> float:
    return float(prediction in answers)


def half(prediction: str | None, answers: Sequence[str]) -> float:
    return 0.0 if prediction is None else 0.5


NONE = {"questions": 0, "recall": None, "all_found": None, "by_id": 0}
METRICS = {"em": exact, "f1": half}


def play(question: Question, actions: Sequence[tuple[Action, Sequence[str]]], stop: StopReason) -> Trajectory:
    """These actions with the titles that each found: 3 prompt tokens, 2 a turn, 4 an observation."""
    segments = [Segment("prompt", (1, 2, 3))]
    turns = []
    for action, titles in actions:
        hits = tuple(Hit(Passage(t, t, "text"), 1.0, rank) for rank, t in enumerate(titles, start=1))
        turns.append(Turn(Generation((8, 9), (-0.5, -0.5), "stop"), "", action, hits))
        segments.append(Segment("policy", (8, 9), (-0.5, -0.5)))
        if not isinstance(action, Answer):
            segments.append(Segment("environment", (4, 4, 4, 4)))
    return Trajectory(question, tuple(segments), tuple(turns), stop, {"generate": 0.5, "retrieve": 0.25})


Q1 = Question("1", "one?", ("a",), ("A", "B"), "two_hop")
Q2 = Question("2", "two?", ("b", "bee"), ("C",), "one_hop")
Q3 = Question("3", "three?", ("c",), (), "one_hop")
Q4 = Question("4", "four?", ("d",), ("D",), "two_hop")
QUESTIONS = [Q1, Q2, Q3, Q4]
EPISODES = {
    "1": play(Q1, [(Search("x"), ["A", "Z"]), (Search("y"), ["B"]), (Answer("a"), [])], "answer"),
    "2": play(Q2, [(Invalid("no tag"), []), (Answer("bee"), [])], "answer"),
    "3": play(Q3, [(Search("x"), ["A"]), (Invalid("no tag"), [])], "turn_budget"),
    "4": play(Q4, [(Search("x"), [])], "retriever_failed"),
}


class Driver:
    """Plays the episodes above; ``die_after`` batches it raises, as a killed process would end."""

    def __init__(self, die_after: int | None = None) -> None:
        self.calls: list[tuple[list[str], Sampling, list[int]]] = []
        self.die_after = die_after

    def run(
        self, questions: Sequence[Question], sampling: Sampling, seeds: Sequence[int] | None = None
    ) -> list[Trajectory]:
        if self.die_after is not None and len(self.calls) >= self.die_after:
            raise KeyboardInterrupt
        self.calls.append(([q.id for q in questions], sampling, list(seeds or [])))
        return [EPISODES[q.id] for q in questions]


def scored(trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]:
    return [ScoredTrajectory(t, 1.0 if t.answer else 0.0 if t.scorable else None, {}) for t in trajectories]


def test_every_figure_by_hand() -> None:
    report = evaluate(Driver(), QUESTIONS, metrics=METRICS, score=scored)
    figures = report.to_dict()
    assert (figures["n"], figures["scored"], figures["unscored"]) == (4, 3, 1)
    assert figures["em"] == pytest.approx(2 / 3)
    assert figures["f1"] == pytest.approx(1 / 3)
    assert figures["em_interval"][0] <= figures["em"] <= figures["em_interval"][1]
    assert figures["by_kind"]["one_hop"]["em"] == 0.5
    assert figures["by_kind"]["two_hop"] == {
        "em": 1.0,
        "f1": 0.5,
        "em_interval": pytest.approx([1 / (1 + 1.959964**2), 1.0]),
        "f1_interval": [0.5, 0.5],
        "interval_methods": {"em": "wilson", "f1": "bootstrap"},
        "n": 2,
        "scored": 1,
        "searches": 2.0,
        "gold": {"questions": 1, "recall": 1.0, "all_found": 1.0, "by_id": 0},
        "alternatives": NONE,
    }
    assert (figures["gold_recall"], figures["alternatives_recall"]) == (0.5, None)
    assert figures["by_pack"] == {}
    assert figures["searches"] == pytest.approx(3 / 3)
    assert figures["answered"] == pytest.approx(2 / 3)
    assert figures["invalid_turns"] == pytest.approx(2 / 7)
    assert figures["supporting_titles"] == {"questions": 2, "recall": 0.5, "all_found": 0.5, "by_id": 0}
    assert figures["policy_tokens"] == pytest.approx((6 + 4 + 4) / 3)
    assert figures["tokens"] == pytest.approx((3 + 14 + 3 + 8 + 3 + 12) / 3)
    assert figures["reward"] == pytest.approx(2 / 3)
    assert figures["stops"] == {"answer": 2, "turn_budget": 1, "retriever_failed": 1}
    assert figures["seconds"] == {"generate": 2.0, "retrieve": 1.0}


def test_golds_by_id_windows_and_alternatives_by_pack() -> None:
    """Passages ``A`` and ``A::w1`` have those ids as titles too; a title that is not among the gold ids is no gold."""
    found = [(Search("x"), ["A::w1", "A::w2", "Z"]), (Answer("a"), [])]
    both = Question("1", "?", ("a",), ("Z",), "2hop", pack="musique", gold_ids=("A", "B"))
    only = Question("2", "?", ("a",), ("Z", "Y"), "single", pack="nq")
    either = Question("3", "?", ("a",), ("T",), "distant", pack="nq", gold_ids=("A", "B", "C"), alternatives=True)
    missed = Question("4", "?", ("a",), ("Z", "Y"), "distant", pack="nq", gold_ids=("D", "E"), alternatives=True)
    rows = [ScoredTrajectory(play(question, found, "answer"), 1.0) for question in (both, only, either, missed)]
    figures = summarise(rows, {"em": exact}).to_dict()
    half = {"recall": 0.5, "all_found": 0.0}
    assert figures["gold"] == {"questions": 2, **half, "by_id": 1}
    assert figures["alternatives"] == {"questions": 2, "recall": 0.5, "all_found": 0.5, "by_id": 2}
    assert figures["supporting_titles"] == {"questions": 2, "recall": 0.75, "all_found": 0.5, "by_id": 0}
    musique, nq = figures["by_pack"]["musique"], figures["by_pack"]["nq"]
    assert (musique["gold"]["recall"], musique["gold"]["by_id"], "by_kind" in musique) == (0.5, 1, False)
    assert (nq["n"], nq["gold"]["questions"], nq["alternatives"]["questions"]) == (3, 1, 2)
    assert {kind: of["n"] for kind, of in nq["by_kind"].items()} == {"distant": 2, "single": 1}


def test_what_is_known_of_a_question_may_grow_between_two_parts_of_an_evaluation(tmp_path: Path) -> None:
    evaluate(Driver(), [Q1], metrics=METRICS, out=tmp_path)
    known = replace(Q1, gold_ids=("A", "N"), pack="p")
    figures = evaluate(Driver(die_after=0), [known], metrics=METRICS, out=tmp_path).to_dict()
    assert figures["gold"] == {"questions": 1, "recall": 0.5, "all_found": 0.0, "by_id": 1}
    with pytest.raises(DataError, match="holds question '1', which is not among these"):
        evaluate(Driver(), [replace(Q1, answers=("other",))], metrics=METRICS, out=tmp_path)


def test_wrong_answers_alone_leave_room_for_a_right_one() -> None:
    wrong = [play(Question(str(n), "?", ("a",)), [(Answer("b"), [])], "answer") for n in range(24)]
    rows = [ScoredTrajectory(trajectory, 0.0) for trajectory in wrong]
    figures = summarise(rows, {"em": lambda answer, accepted: float(answer in accepted)}).to_dict()
    assert figures["em"] == 0.0
    assert figures["em_interval"] == pytest.approx([0.0, 0.137976], abs=1e-6)
    assert figures["interval_methods"] == {"em": "wilson"}


def test_figures_are_json_even_when_nothing_could_be_scored() -> None:
    figures = summarise([ScoredTrajectory(EPISODES["4"], None)], METRICS).to_dict()
    assert figures["em"] is None
    assert "em_interval" not in figures
    assert (figures["n"], figures["scored"], figures["unscored"]) == (1, 0, 1)
    json.dumps(figures, allow_nan=False)


def test_greedy_by_default_with_a_seed_a_question_whatever_the_batch() -> None:
    ones, twos = Driver(), Driver()
    evaluate(ones, QUESTIONS, metrics=METRICS, batch_size=1, seed=100)
    evaluate(twos, QUESTIONS, metrics=METRICS, batch_size=3, seed=100)
    assert [call[0] for call in twos.calls] == [["1", "2", "3"], ["4"]]
    assert [seed for call in ones.calls for seed in call[2]] == [100, 101, 102, 103]
    assert [seed for call in twos.calls for seed in call[2]] == [100, 101, 102, 103]
    assert all(call[1].greedy for call in ones.calls + twos.calls)


def test_files_of_a_finished_evaluation(tmp_path: Path) -> None:
    report = evaluate(Driver(), QUESTIONS, metrics=METRICS, score=scored, out=tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(json.dumps(report.to_dict()))
    assert json.loads((tmp_path / "predictions.json").read_text()) == {"answer": {"1": "a", "2": "bee"}, "sp": {}}
    rows = list(read_trajectories(tmp_path / "trajectories.jsonl"))
    assert rows == scored([EPISODES[question.id] for question in QUESTIONS])


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_report(tmp_path: Path) -> None:
    whole = evaluate(Driver(), QUESTIONS, metrics=METRICS, score=scored, seed=7)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Driver(die_after=1), QUESTIONS, metrics=METRICS, score=scored, out=tmp_path, batch_size=2)
    with (tmp_path / "trajectories.jsonl").open("a") as file:
        file.write('{"trajectory": {"quest')
    driver = Driver()
    progress: list[tuple[int, int]] = []
    report = evaluate(
        driver,
        QUESTIONS,
        metrics=METRICS,
        score=scored,
        out=tmp_path,
        batch_size=2,
        seed=7,
        on_progress=lambda done, total: progress.append((done, total)),
    )
    assert report == whole
    assert [(ids, seeds) for ids, _, seeds in driver.calls] == [(["3", "4"], [9, 10])]
    assert progress == [(2, 4), (4, 4)]


def test_unscored_questions_are_played_again_on_resume_and_stand_once(tmp_path: Path) -> None:
    evaluate(Driver(), QUESTIONS, metrics=METRICS, score=scored, out=tmp_path)
    driver = Driver()
    evaluate(driver, QUESTIONS, metrics=METRICS, score=scored, out=tmp_path)
    assert [ids for ids, _, _ in driver.calls] == [["4"]]
    rows = list(read_trajectories(tmp_path / "trajectories.jsonl"))
    assert [row.trajectory.question.id for row in rows] == ["1", "2", "3", "4"]


def test_trajectories_of_other_questions_are_not_mixed_in(tmp_path: Path) -> None:
    evaluate(Driver(), QUESTIONS, metrics=METRICS, out=tmp_path)
    changed = [Question("1", "one?", ("another answer",)), Q2]
    with pytest.raises(DataError, match="holds question '1'"):
        evaluate(Driver(), changed, metrics=METRICS, out=tmp_path)


def test_no_questions_and_repeated_ids_are_refused() -> None:
    with pytest.raises(DataError, match="no questions"):
        evaluate(Driver(), [], metrics=METRICS)
    with pytest.raises(DataError, match="'1' occurs more than once"):
        evaluate(Driver(), [Q1, Q2, Q1], metrics=METRICS)
