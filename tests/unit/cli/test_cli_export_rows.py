"""What the agent asked becomes rows that the retriever's training reads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agent.retriever_rows import asked_queries, judge
from cli import main as program
from envs.questions import load_questions
from retrieval.training.config import SourceSettings
from retrieval.training.rows import load_rows
from sleuth.runs import RunFolder
from sleuth.trajectories import close_trajectories, read_trajectories, to_line
from sleuth.types import (
    Answer,
    Generation,
    Hit,
    Passage,
    Question,
    ScoredTrajectory,
    Search,
    Segment,
    StopReason,
    Trajectory,
    Turn,
)

GOLD = Passage("p1", "Inception  (film)", "Inception was directed by Nolan.")
HOLDS = Passage("p2", "Other", "It was Nolan who said so.")
WRONG = Passage("p3", "Third", "Nothing of the kind.")
ENTITLED = Passage("p4", "Nolan", "A surname.")
BLANK = Passage("p4", "Empty", " ")
NAMED = Question("q1", "Who directed it?", ("Nolan",), ("inception (film)",))
LISTED = replace(NAMED, gold_ids=("p3",))
OPEN = Question("q2", "Who directed it?", ("Nolan",))
CLOSED = Question("q3", "Are they both films?", ("yes",))
SPARE = Generation((1,), (-0.5,), "stop")


def asked(
    question: Question, reward: float | None, *searches: tuple[str, list[Passage]], stop: StopReason = "answer"
) -> ScoredTrajectory:
    turns = [
        Turn(SPARE, "", Search(query), tuple(Hit(p, 1.0 / rank, rank) for rank, p in enumerate(found, start=1)))
        for query, found in searches
    ]
    segments = (Segment("prompt", (1,)), Segment("policy", (1,), (-0.5,)))
    return ScoredTrajectory(Trajectory(question, segments, (*turns, Turn(SPARE, "", Answer("x"))), stop), reward)


@pytest.mark.parametrize(
    ("question", "passage", "rewarded", "mark"),
    [
        (NAMED, GOLD, False, "positive"),
        (NAMED, HOLDS, True, "positive"),
        (NAMED, HOLDS, False, "unknown"),
        (NAMED, WRONG, True, "negative"),
        (OPEN, GOLD, True, "positive"),
        (OPEN, GOLD, False, "unknown"),
        (OPEN, WRONG, False, "negative"),
        (OPEN, ENTITLED, True, "unknown"),
        (OPEN, ENTITLED, False, "unknown"),
        (CLOSED, Passage("p", "T", "yes it is"), True, "negative"),
        (LISTED, WRONG, False, "positive"),
        (LISTED, replace(WRONG, id="p3::w1"), False, "positive"),
        (LISTED, GOLD, False, "unknown"),
        (LISTED, replace(GOLD, text="Another film."), False, "negative"),
    ],
)
def test_the_rule(question: Question, passage: Passage, rewarded: bool, mark: str) -> None:
    assert judge(question, passage, rewarded=rewarded) == mark


def test_every_query_of_a_turn_is_a_row_with_what_it_found_itself() -> None:
    found = tuple(Hit(p, 1.0, rank) for p, rank in ((GOLD, 1), (WRONG, 2), (HOLDS, 1)))
    turn = Turn(SPARE, "", Search("nolan film", "nothing", "again"), found, hits_per_query=(2, 0, 1))
    segments = (Segment("prompt", (1,)), Segment("policy", (1,), (-0.5,)))
    row = ScoredTrajectory(Trajectory(OPEN, segments, (turn, Turn(SPARE, "", Answer("x"))), "answer"), 1.0)
    rows = [query.to_row("q") for query in asked_queries([row], 1.0)]
    assert [(one["query"], [p["docid"] for p in one["positive_passages"]]) for one in rows] == [
        ("nolan film", ["p1"]),
        ("nothing", []),
        ("again", ["p2"]),
    ]
    assert [p["docid"] for p in rows[0]["negative_passages"]] == ["p3"]


def test_the_same_query_of_a_question_is_one_row_and_a_positive_is_no_negative() -> None:
    rows = [
        asked(OPEN, 0.0, ("nolan film", [GOLD, WRONG])),
        asked(OPEN, 1.0, ("nolan film", [GOLD, WRONG, BLANK]), ("again", [HOLDS])),
        asked(NAMED, 0.0, ("nolan film", [WRONG])),
        asked(OPEN, None, ("unscored", [GOLD])),
        asked(OPEN, 1.0, ("failed", [GOLD]), stop="retriever_failed"),
    ]
    found = [query.to_row(f"q{n}") for n, query in enumerate(asked_queries(rows, 1.0))]
    assert [(row["query"], row["question_id"]) for row in found] == [
        ("nolan film", "q2"),
        ("again", "q2"),
        ("nolan film", "q1"),
    ]
    assert [p["docid"] for p in found[0]["positive_passages"]] == ["p1"]
    assert [p["docid"] for p in found[0]["negative_passages"]] == ["p3"]
    assert (found[0]["asked"], found[0]["reward"]) == (2, 0.5)
    assert found[2]["positive_passages"] == []


def test_what_nobody_rewarded_is_in_neither_list() -> None:
    (query,) = asked_queries([asked(OPEN, 0.5, ("q", [HOLDS, WRONG]))], 1.0)
    row = query.to_row("q0")
    assert (row["positive_passages"], [p["docid"] for p in row["negative_passages"]]) == ([], ["p3"])
    assert [
        p["docid"] for p in asked_queries([asked(OPEN, 0.5, ("q", [HOLDS]))], 0.5)[0].to_row("q")["positive_passages"]
    ] == ["p2"]


def export(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        program.main(["export-rows", *arguments])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("closed", [False, True])
def test_a_run_becomes_rows_that_retriever_training_reads(
    closed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path / "run")
    with run.claim({"out": str(tmp_path / "run")}):
        folder = tmp_path / "run" / "grpo" / "trajectories"
        folder.mkdir(parents=True)
        rows = [asked(NAMED, 1.0, ("nolan film", [WRONG, GOLD]), ("lost", [WRONG]))]
        (folder / "step-000000-0.jsonl").write_text("".join(map(to_line, rows)))
    if closed:
        close_trajectories(folder)
    out = tmp_path / "rows.jsonl"
    assert export(str(tmp_path / "run"), "--out", str(out)) == 0
    assert "1 rows from 2 queries; 1 had no positive passage" in capsys.readouterr().err
    (row,) = load_rows([SourceSettings(path=str(out))])
    assert (row.query, row.positives, row.negatives, row.answers) == ("nolan film", (GOLD,), (WRONG,), ("Nolan",))
    assert export(str(tmp_path / "run"), "--out", str(out), "--every") == 0
    assert [json.loads(line)["query"] for line in out.read_text().splitlines()] == ["nolan film", "lost"]


def test_nothing_to_write_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(to_line(asked(OPEN, 0.0, ("q", [WRONG]))))
    assert export(str(file), "--out", str(tmp_path / "rows.jsonl")) == 2
    assert "none of them found a positive passage" in capsys.readouterr().err
    assert export(str(tmp_path / "absent"), "--out", str(tmp_path / "rows.jsonl")) == 2
    assert "there is nothing at" in capsys.readouterr().err
    assert not (tmp_path / "rows.jsonl").exists()


def test_questions_of_two_files_with_one_id_are_two_rows(tmp_path: Path) -> None:
    content = {"id": "q1", "question": "Who directed it?"}
    runs = []
    for name, answer, title in (("first", "Nolan", "Inception (film)"), ("second", "Poe", "Third")):
        file = tmp_path / f"{name}.jsonl"
        row = {**content, "golden_answers": [answer], "metadata": {"supporting_titles": [title]}}
        file.write_text(json.dumps(row) + "\n")
        (question,) = load_questions(file)
        assert question.file == str(file)
        folder = tmp_path / name
        folder.mkdir()
        (folder / "step-000000-0.jsonl").write_text(to_line(asked(question, 0.0, ("nolan film", [GOLD, WRONG]))))
        close_trajectories(folder)
        runs.append(str(folder))
    out = tmp_path / "rows.jsonl"
    assert export(*runs, "--out", str(out)) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    found = [(Path(row["question_file"]).stem, row["question_id"], row["query"]) for row in rows]
    assert found == [("first", "q1", "nolan film"), ("second", "q1", "nolan film")]
    assert [[p["docid"] for p in row["positive_passages"]] for row in rows] == [["p1"], ["p3"]]
    assert [[p["docid"] for p in row["negative_passages"]] for row in rows] == [["p3"], ["p1"]]
    assert [row["asked"] for row in rows] == [1, 1]


def test_equal_questions_of_two_files_are_two_rows_and_of_one_file_one() -> None:
    both = [replace(OPEN, file=file) for file in ("a.jsonl", "b.jsonl", "a.jsonl")]
    found = asked_queries([asked(question, 1.0, ("q", [GOLD])) for question in both], 1.0)
    assert [(query.question.file, len(query.rewards)) for query in found] == [("a.jsonl", 2), ("b.jsonl", 1)]


def test_trajectories_from_before_the_file_was_kept_are_told_apart_by_their_questions(tmp_path: Path) -> None:
    other = replace(OPEN, text="Who wrote it?", answers=("Poe",))
    file = tmp_path / "trajectories.jsonl"
    rows = [json.loads(to_line(asked(question, 1.0, ("q", [GOLD])))) for question in (OPEN, other, OPEN)]
    for row in rows:
        del row["trajectory"]["question"]["file"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = asked_queries(read_trajectories(file), 1.0)
    assert [(query.question, query.question.file, len(query.rewards)) for query in found] == [
        (OPEN, "", 2),
        (other, "", 1),
    ]
