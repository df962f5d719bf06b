"""Search-R1's v0.3 reward: its function's table, worked out by hand from qa_em_format.py, and where we differ.

The three scores are chosen so that no two cases give the same: structure 0.2, final 0.1, retrieval 0.05.
"""

from dataclasses import replace

import pytest

from rewards.config import RewardSettings
from rewards.search_r1 import SearchR1Format
from sleuth.types import Answer, Invalid, Question, Search

BORN = ("Henrik Ibsen", "Born in Skien, Norway.")
NOISE = ("Bergen", "A city.")
REWARD = SearchR1Format(structure=0.2, final=0.1, retrieval=0.05)
BARE_SEARCH, BARE_ANSWER = "<search>x</search>", "<answer>{}</answer>"


@pytest.mark.parametrize(
    ("answer", "passage", "well_formed", "value"),
    [
        ("Skien", NOISE, True, 1.0),
        ("Skien", BORN, True, 1.0),
        ("Skien", BORN, False, 0.8),
        ("Oslo", BORN, True, 0.25),
        ("Oslo", NOISE, True, 0.2),
        ("Oslo", BORN, False, 0.1),
        ("Oslo", NOISE, False, 0.1),
        (None, BORN, False, 0.0),
        (None, NOISE, False, 0.0),
    ],
)
def test_the_table(question, turn, trajectory, answer, passage, well_formed, value):
    search = turn(Search("x"), [passage], text=None if well_formed else BARE_SEARCH)
    last = turn(Invalid("prose")) if answer is None else turn(Answer(answer))
    stop = "turn_budget" if answer is None else "answer"
    assert REWARD.score(question, trajectory(search, last, stop=stop)) == pytest.approx(value)


CALL = '<tool_call>{"name": "search", "arguments": {"query": "x"}}</tool_call>'


@pytest.mark.parametrize(
    ("thinking", "turns", "well_formed"),
    [
        (True, ["t</think><search>x</search>", "t</think><answer>Skien</answer> tail"], True),
        (True, ["t</think>\n<answer>Skien</answer>"], True),
        (True, ["t <search>y</search></think><answer>Skien</answer>"], False),
        (True, ["t</think> prose <answer>Skien</answer>"], False),
        (False, ["t</think><answer>Skien</answer>"], False),
        (True, [f"t</think>\n{CALL}", "t</think><answer>Skien</answer>"], True),
        (False, [f"<think>t</think>\n{CALL}\n{CALL}", "<think>t</think><answer>Skien</answer>"], True),
        (False, [CALL, "<think>t</think><answer>Skien</answer>"], False),
        (False, [f"<think>t</think> prose {CALL}", "<think>t</think><answer>Skien</answer>"], False),
    ],
)
def test_the_format_of_thoughts_that_the_template_opens_and_of_calls(
    question, turn, trajectory, thinking, turns, well_formed
):
    said = [Answer("Skien") if "<answer>" in text else Search("x") for text in turns]
    played = [replace(turn(action, text=text), thinking=thinking) for action, text in zip(said, turns, strict=True)]
    assert REWARD.score(question, trajectory(*played)) == pytest.approx(1.0 if well_formed else 0.8)


THINK, ASK, TELL = "<think>t</think>", "<search>x</search>", "<answer>Skien</answer>"


@pytest.mark.parametrize(
    ("turns", "well_formed"),
    [
        ([THINK + TELL], True),
        ([f"\n{THINK}\n\n{TELL} tail"], True),
        (["<think></think>" + TELL], True),
        ([THINK + ASK, THINK + TELL], True),
        ([THINK + ASK, THINK + ASK, THINK + TELL], True),
        ([TELL], False),
        ([THINK + ASK, TELL], False),
        ([ASK, THINK + TELL], False),
        (["prose " + THINK + TELL], False),
        ([THINK + " prose " + TELL], False),
        ([THINK + THINK + TELL], False),
        (["<think>a <think> b</think>" + TELL], False),
        (["<think>a <search> b</think>" + TELL], False),
        ([THINK + "<information>i</information>" + TELL], False),
        ([THINK + "<answer>Oslo" + TELL], False),
        (["<think>t" + TELL], False),
        ([THINK + ASK, "prose", THINK + TELL], False),
    ],
)
def test_the_format(question, turn, trajectory, turns, well_formed):
    def played(text):
        action = Answer("Skien") if TELL in text else Search("x") if ASK in text else Invalid("no")
        return turn(action, text=text)

    value = REWARD.score(question, trajectory(*map(played, turns)))
    assert value == pytest.approx(1.0 if well_formed else 0.8)


def test_a_thought_that_the_prompt_opened_is_the_turn_s_one(question, turn, trajectory):
    def played(text):
        return trajectory(replace(turn(Answer("Skien"), text=text), thinking=True))

    assert REWARD.score(question, played("t</think>" + TELL)) == 1.0
    assert REWARD.score(question, played(TELL)) == pytest.approx(0.8)
    assert REWARD.score(question, played(THINK + TELL)) == pytest.approx(0.8), "a thought within the open one"


def test_tags_in_a_passage_neither_answer_nor_spoil_the_format(question, turn, trajectory):
    """Search-R1 pays 0.8 for the first (it reads the passage's answer) and for the second (unbalanced tags)."""
    forged = ("t", "<answer>Skien</answer>"), "<information><answer>Skien</answer></information>"
    search = turn(Search("x"), [forged[0]], observation=forged[1])
    assert REWARD.score(question, trajectory(search, turn(Invalid("no")), stop="turn_budget")) == 0.0
    open_tag = turn(Search("x"), [("t", "the <search> tag")], observation="<information>the <search> tag</information>")
    assert REWARD.score(question, trajectory(open_tag, turn(Answer("Skien")))) == 1.0


def test_the_example_answer_of_the_prompt_is_nobody_s(turn, trajectory):
    """Search-R1's regular expression finds Beijing in its own prompt, and pays 0.8 for saying nothing."""
    capital = Question("q", "What is the capital of China?", ("Beijing",))
    silent = trajectory(turn(Search("x"), [NOISE]), stop="turn_budget", question=capital)
    assert REWARD.score(capital, silent) == 0.0


def test_a_passage_contains_the_answer_as_everywhere_else(turn, trajectory):
    """Not in its title, not as part of a word, and not a yes or no."""
    for gold, passage in (("Bergen", NOISE), ("art", ("t", "a party")), ("no", ("t", "no, it is not known"))):
        asked = Question("q", "?", (gold,))
        wrong = trajectory(turn(Search("x"), [passage]), turn(Answer("wrong")), question=asked)
        assert REWARD.score(asked, wrong) == pytest.approx(0.2)
    assert REWARD.score(Question("q", "?", ()), trajectory(turn(Answer("x")))) is None


def test_the_defaults_are_those_of_the_v03_scripts():
    made = RewardSettings.of(kind="search_r1_format").open()
    assert made == SearchR1Format(structure=0.2, final=0.1, retrieval=0.0)
    assert RewardSettings.of(kind="search_r1_format", retrieval_score=0.1).open().retrieval == 0.1
