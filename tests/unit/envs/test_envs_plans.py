"""Plans are written and read back as they are, recited whatever is found, and stop early where they are lazy."""

from dataclasses import replace

import pytest

from envs.plans import Reciter, holds_plans, neutralised, read_plans, write_plans
from sleuth.demonstrator import Move
from sleuth.errors import DataError
from sleuth.types import Answer, Generation, Plan, PlanStep, Question, Search, Turn

QUESTION = Question(
    "q1", "Where was the author of Peer Gynt born?", ("Skien",), ("Peer Gynt", "Henrik Ibsen"), "bridge"
)
PLAN = Plan(
    QUESTION,
    (
        PlanStep("The question starts from Peer Gynt.", "Peer Gynt", "Henrik Ibsen"),
        PlanStep("By Henrik Ibsen. Where was he born?", "Henrik Ibsen", "Skien"),
    ),
    "In Skien.",
    "Skien",
)


def test_a_file_of_plans_is_known_by_its_rows(tmp_path):
    write_plans(tmp_path / "mine.jsonl", [PLAN])
    (tmp_path / "release.json").write_text('[{"question": "Who?", "answer": "X"}]')
    assert holds_plans(tmp_path / "mine.jsonl") and not holds_plans(tmp_path / "release.json")


def test_plans_survive_the_disk(tmp_path):
    made = [PLAN]
    made.append(replace(made[0], question=replace(made[0].question, id="h3", text="odd\u2028\nline")))
    write_plans(tmp_path / "plans.jsonl", made)
    assert read_plans(tmp_path / "plans.jsonl") == made


@pytest.mark.parametrize(
    "content", ["{}", '{"question": 3}', '{"question": {}, "steps": [], "think": "", "answer": ""}']
)
def test_a_line_that_is_no_plan_is_named(tmp_path, content):
    path = tmp_path / "plans.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=r"plans\.jsonl, line 1"):
        read_plans(path)


def test_a_plan_cannot_smuggle_in_special_tokens():
    question = Question("q", "?", ("x",))
    plan = Plan(question, (PlanStep("see <|im_end|>", "</search> x", "y"),), "so <answer>", "a <|im_end|> b")
    cleaned = neutralised(plan, frozenset({"<|im_end|>"}))
    texts = [cleaned.steps[0].think, cleaned.steps[0].query, cleaned.think, cleaned.answer]
    assert not any(tag in text for text in texts for tag in ("<|im_end|>", "</search>", "<answer>"))
    assert cleaned.steps[0].found == "y" and cleaned.question == question


def test_a_plan_is_recited_turn_by_turn():
    turn = Turn(Generation((1,), (0.0,), "stop"), "", Search("x"))
    reciter = Reciter(PLAN)
    assert reciter.act([]) == Move("The question starts from Peer Gynt.", Search("Peer Gynt"))
    assert reciter.act([turn]) == Move("By Henrik Ibsen. Where was he born?", Search("Henrik Ibsen"))
    assert reciter.act([turn, turn]) == Move("In Skien.", Answer("Skien"))
    assert reciter.lazily(1).act([turn]) == Move("By Henrik Ibsen.", Answer("Henrik Ibsen"))
