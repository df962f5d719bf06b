"""The gate before GRPO: what counts as a miss, what the figures are, and what one is told to change."""

from __future__ import annotations

import pytest

from agent.config import GateSettings
from agent.gate import gate_figures, missed_first, shortfall
from sleuth.types import Answer, Generation, Hit, Passage, Question, ScoredTrajectory, Search, Segment, Trajectory, Turn

QUESTION = Question("q", "where?", ("Paris",), ("France",))
YES = Question("y", "is it?", ("yes",), gold_ids=("a", "b"))
SAID = Generation((1,), (0.0,), "stop")


def played(question: Question, *found: list[Passage]) -> Trajectory:
    """An episode with a search for each of ``found``, and an answer."""
    turns = [Turn(SAID, "", Search("x"), tuple(Hit(p, 1.0, 1) for p in passages)) for passages in found]
    return Trajectory(question, (Segment("prompt", (1,)),), (*turns, Turn(SAID, "", Answer("Paris"))), "answer")


def passage(text: str, title: str = "", identity: str = "p") -> Passage:
    return Passage(identity, title, text)


HIT, MISS = [passage("It is Paris.")], [passage("It is Rome.", "Paris")]


@pytest.mark.parametrize(
    ("trajectory", "missed"),
    [
        (played(QUESTION), False),
        (played(QUESTION, HIT), False),
        (played(QUESTION, MISS), True),
        (played(QUESTION, MISS, HIT), True),
        (played(QUESTION, HIT, MISS), False),
        (played(QUESTION, []), True),
        (played(YES, [passage("", identity="a"), passage("", identity="b::w3")]), False),
        (played(YES, [passage("yes", identity="a")]), True),
        (played(Question("n", "?", ("no",)), [passage("no")]), False),
    ],
)
def test_a_miss_is_a_first_search_without_the_answer(trajectory: Trajectory, missed: bool) -> None:
    assert missed_first(trajectory) is missed


def scored(*rows: tuple[Trajectory, float | None]) -> list[ScoredTrajectory]:
    return [ScoredTrajectory(trajectory, reward) for trajectory, reward in rows]


GROUPS = [
    scored((played(QUESTION, MISS, HIT), 1.0), (played(QUESTION, MISS), 0.0), (played(QUESTION, MISS), None)),
    scored((played(QUESTION, HIT), 1.0), (played(QUESTION, HIT), 1.0), (played(QUESTION), 1.0)),
    scored((played(QUESTION, MISS), 0.5), (played(QUESTION, HIT), None)),
]


def test_figures_are_of_what_could_be_scored() -> None:
    figures = gate_figures(GROUPS)
    assert (figures.episodes, figures.searched, figures.misses, figures.again) == (6, 5, 3, 1)
    assert (figures.groups, figures.varied) == (2, 1), "a single row cannot vary"
    assert figures.search_again == pytest.approx(1 / 3)
    assert figures.reward == pytest.approx(4.5 / 6)
    assert figures.line() == ("1 of 3 misses search again (33%), 1 of 2 groups vary (50%); 5 of 6 episodes search")


@pytest.mark.parametrize(
    ("groups", "gate", "what", "change"),
    [
        (GROUPS, {"search_again": 0.34}, "1 of 3 misses search again (33%, at least 34%)", "environment.unseen"),
        (GROUPS, {"varied_groups": 0.6}, "1 of 2 groups vary in reward (50%, at least 60%)", "harder questions"),
        ([scored((played(QUESTION), 0.0), (played(QUESTION), 0.0))], {}, "no sampled episode searches", "warm-start"),
        ([scored((played(QUESTION, HIT), 0.0), (played(QUESTION, HIT), 0.0))], {}, "0 of 1 groups vary", "f1"),
        ([scored((played(QUESTION, HIT), None))], {}, "no sampled episode could be scored", "failures"),
    ],
)
def test_what_is_too_low_is_said_with_what_to_change(groups, gate, what: str, change: str) -> None:
    found = shortfall(gate_figures(groups), GateSettings(**gate), may_search_again=True)
    assert found is not None
    assert what in found[0]
    assert change in found[1]


def test_what_suffices_passes() -> None:
    assert shortfall(gate_figures(GROUPS), GateSettings(), may_search_again=True) is None
    never = gate_figures([scored((played(QUESTION), 0.0), (played(QUESTION), 1.0))])
    assert shortfall(never, GateSettings(), may_search_again=False) is None, "where no second search is allowed"
    always = gate_figures([scored((played(QUESTION, HIT), 0.0), (played(QUESTION, HIT), 1.0))])
    assert shortfall(always, GateSettings(), may_search_again=True) is None, "no miss, so none to search on after"
