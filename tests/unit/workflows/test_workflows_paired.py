"""What is compared question by question."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sleuth.layout import EvaluationLayout
from sleuth.trajectories import to_line
from sleuth.types import Answer, Generation, Hit, Passage, Question, ScoredTrajectory, Search, Trajectory, Turn
from workflows.paired import values_of


def test_gold_recall_is_of_questions_that_need_all_of_their_golds(tmp_path: Path) -> None:
    generation = Generation((1,), (-1.0,), "stop")
    hit = Hit(Passage("p", "P", "about p"), 1.0, 1)
    turns = (Turn(generation, "", Search("s"), (hit,)), Turn(generation, "", Answer("x")))
    whole = Question("all", "which?", ("x",), gold_ids=("p", "q"))
    either = replace(whole, id="any", alternatives=True)
    rows = [ScoredTrajectory(Trajectory(asked, (), turns, "answer", {}), 1.0) for asked in (whole, either)]
    layout = EvaluationLayout(tmp_path)
    layout.trajectories.write_text("".join(map(to_line, rows)))
    values = values_of([layout])
    assert values["gold_recall"] == {("all", "which?"): 0.5}
    assert set(values["em"]) == set(values["searches"]) == {("all", "which?"), ("any", "which?")}
