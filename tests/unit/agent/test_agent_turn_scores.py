"""What a turn earned by itself: gold found, a judge of one's own, information gain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from played_turns import QUESTION, Playing, a_model, played, rollouts_of

from agent.config import GrpoSettings
from agent.learning.answer_logprobs import AnswerReader
from agent.learning.credit.assign import assign
from agent.learning.credit.config import CreditSettings
from agent.learning.credit.group import GroupCredit
from agent.learning.credit.information_gain import InformationGain
from agent.learning.credit.turn_scores import GoldFound, PureTurnScorer
from agent.learning.credit.turns import TurnCredit
from envs.config import EnvironmentSettings
from envs.search_env import SearchEnvironment
from sleuth.errors import ConfigError
from sleuth.types import (
    Call,
    Hit,
    Invalid,
    Passage,
    Question,
)

# Gold found


def test_a_search_that_brings_a_title_not_seen_before_earns_one():
    searches = (("Other", "france"), ("France",), ("France", "Seine"), ("Seine",))
    trajectory = played(1, 1, 1, 1, 1, hits=searches)
    assert GoldFound().score_turns(QUESTION, trajectory) == (1.0, 0.0, 1.0, 0.0, None)
    given = replace(trajectory, given=(Hit(Passage("p", "Seine", ""), 1.0, 1),))
    assert GoldFound().score_turns(QUESTION, given) == (1.0, 0.0, 0.0, 0.0, None)


def test_gold_by_id_is_new_once_and_of_alternatives_the_first_alone():
    """Ids and titles of the passages are the same, but for the question's titles, which decide nothing here."""
    listed = replace(QUESTION, gold_ids=("A", "B"))
    trajectory = played(1, 1, 1, 1, 1, hits=(("France",), ("A::w0",), ("A::w1", "A"), ("B",)))
    assert GoldFound().score_turns(listed, trajectory) == (0.0, 1.0, 0.0, 1.0, None)
    either = replace(listed, alternatives=True)
    assert GoldFound().score_turns(either, trajectory) == (0.0, 1.0, 0.0, 0.0, None)


def test_without_titles_gold_are_passages_that_contain_an_answer():
    question = Question("q", "?", ("about B",))
    trajectory = played(1, 1, 1, 1, question=question, hits=(("A",), ("B",), ("A", "B")))
    assert GoldFound().score_turns(question, trajectory) == (0.0, 1.0, 0.0, None)


def test_invalid_turns_are_not_judged():
    trajectory = played(1, 1, hits=(("France",),))
    turns = (replace(trajectory.turns[0], action=Invalid("no")), *trajectory.turns[1:])
    assert GoldFound().score_turns(QUESTION, replace(trajectory, turns=turns)) == (None, None)


def test_a_call_of_a_tool_is_no_search_that_found_nothing():
    """What it read may help, which information gain tells; that it found no title is not held against it."""
    trajectory = played(1, 1, 1, hits=(("France",), ()))
    opened = replace(trajectory.turns[1], action=Call("open", {"document": "1"}))
    opening = replace(trajectory, turns=(trajectory.turns[0], opened, trajectory.turns[2]))
    assert GoldFound().score_turns(QUESTION, opening) == (1.0, None, None)
    values = {(length, answer): -length for length in (2, 4, 6) for answer in QUESTION.answers}
    assert InformationGain().score([opening], a_model(values)) == [(-2.0, -2.0, None)]


@pytest.mark.parametrize("answers", [(), ("yes",)])
def test_a_question_without_known_gold_has_no_turn_credit_and_is_not_unscored(answers):
    question = Question("q", "?", answers)
    rollouts = rollouts_of([question], PureTurnScorer(GoldFound(), "gold_found"), [1.0, 0.0])
    record = rollouts.play(["0", "0"], 0, 0, Playing([("A",), ("B",)]))
    assert [(s.reward, s.turn_scores) for s in record.scored] == [(1.0, None), (0.0, None)]
    (rows,) = assign(TurnCredit(outcome=GroupCredit("none")), [record.scored])
    assert rows == [[0.5, 0.5], [-0.5, -0.5]]
    assert "turns/score" not in record.metrics


# A judge of one's own


@dataclass(frozen=True)
class Late:
    """A reward that can also judge turns: the number of the turn, times ``by``."""

    by: float = 1.0
    name: str = "late"

    def score(self, _question, trajectory):
        return float(len(trajectory.turns))

    def score_turns(self, _question, trajectory):
        return [self.by * place for place, _ in enumerate(trajectory.turns)]


def test_one_line_of_a_config_names_a_judge_of_ones_own():
    settings = GrpoSettings(credit={"kind": "turns", "score": {"kind": f"{__name__}:Late", "options": {"by": 2.0}}})
    credit = settings.credit.open()
    assert credit.scorer.score([played(1, 1, 1)]) == [(0.0, 2.0, 4.0)]
    assert GrpoSettings(**settings.model_dump(mode="json")) == settings
    short = CreditSettings.of(kind="turns", score=f"{__name__}:Late").open()
    assert short.scorer.score([played(1, 1)]) == [(0.0, 1.0)]


class WrongJudge:
    def __init__(self, given):
        self.given = given

    def score_turns(self, _question, _trajectory):
        return self.given


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ([1.0], "ValueError: it gave [1.0], not a finite number or None for each of 2 turns"),
        ([1.0, float("nan")], "ValueError: it gave [1.0, nan], not a finite number or None for each of 2 turns"),
        ([1.0, "much"], "ValueError: could not convert string to float: 'much'"),
        (3.0, "TypeError: 'float' object is not iterable"),
    ],
)
def test_a_judge_that_breaks_its_contract_has_failed(given, error):
    (failure,) = PureTurnScorer(WrongJudge(given), "mine:Judge").score([played(1, 1)])
    assert str(failure) == f"the turn score mine:Judge failed: {error}"


class RaisesOnce:
    """Raises on the first trajectory that it is asked about."""

    def __init__(self, error):
        self.errors = [error]

    def score_turns(self, _question, trajectory):
        if self.errors:
            raise self.errors.pop()
        return [1.0] * len(trajectory.turns)


def test_a_judge_that_raises_on_one_trajectory_leaves_that_one_unscored(caplog):
    rollouts = rollouts_of([QUESTION], PureTurnScorer(RaisesOnce(KeyError("gold")), "mine:Judge"), [1.0, 0.0])
    record = rollouts.play(["0", "0"], 0, 0, Playing([("A",), ("B",)]))
    assert [s.reward for s in record.scored] == [None, 0.0] and record.metrics["rollout/unscored"] == 0.5
    assert record.scored[0].turn_scores is None and record.scored[1].turn_scores == (1.0, 1.0)
    (line,) = [r.getMessage() for r in caplog.records if r.name == "sleuth.unscored"]
    assert line.startswith("question 'q' is unscored: the turn score mine:Judge failed: KeyError: 'gold'\nTraceback")
    with pytest.raises(ConfigError, match="no server"):
        PureTurnScorer(RaisesOnce(ConfigError("no server")), "mine:Judge").score([played(1, 1)])


def test_a_judge_without_score_turns_is_one_line():
    for score, message in (
        ("builtins:dict", "has no method score_turns"),
        ({"kind": f"{__name__}:Late", "options": {"at": 1}}, "look at its options"),
        ("no.such:Judge", "cannot import no.such"),
    ):
        with pytest.raises(ConfigError, match=message):
            CreditSettings.of(kind="turns", score=score).open()


# Information gain


def test_a_search_earns_what_it_adds_to_the_best_answer_s_logprob():
    trajectory = played(2, 1, 1)  # prompt 2, turn 2, observation 1, turn 1, observation 1, answer
    values = {
        (2, "Paris"): -4.0,
        (2, "the city"): -3.0,
        (5, "Paris"): -1.0,
        (5, "the city"): -2.5,
        (7, "Paris"): -1.5,
        (7, "the city"): -1.25,
    }
    answers = a_model(values)
    assert InformationGain().score([trajectory, trajectory], answers) == [(2.0, -0.25, None)] * 2
    assert len(answers.asked) == 6, "equal transcripts are read once"
    assert {prefix for prefix, _ in answers.asked} == {(1, 2), (1, 2, 10, 11, 7), (1, 2, 10, 11, 7, 20, 7)}


def test_turns_that_brought_nothing_to_the_transcript_are_not_judged():
    trajectory = played(1, 1, 1)
    hinted = replace(
        trajectory, turns=(replace(trajectory.turns[0], action=Invalid("no")), *trajectory.turns[1:]), stop="answer"
    )
    values = {(length, answer): -length for length in (2, 4, 6) for answer in QUESTION.answers}
    assert InformationGain().score([hinted], a_model(values)) == [(None, -2.0, None)]
    cut = replace(trajectory, segments=trajectory.segments[:4], turns=trajectory.turns[:2], stop="token_budget")
    assert InformationGain().score([cut], a_model(values)) == [(-2.0, None)], "no room for the second observation"
    without = replace(trajectory, question=Question("q", "?", ()))
    assert InformationGain().score([without], a_model({})) == [None]


@pytest.fixture
def environment(tiny):
    return SearchEnvironment(EnvironmentSettings(preset="minimal"), tiny[1])


def test_an_answer_is_read_as_the_policy_would_write_it(tiny, environment):
    model, codec = tiny
    start = tuple(codec.encode("Question : what is the capital of France ?\n", trusted=True))
    longer = (*start, *codec.encode("<information>\nParis is the capital\n</information>\n", trusted=True))
    thinking = (*start, *codec.encode("<think>\n", trusted=True))
    pairs = [(start, "Paris"), (longer, "Paris"), (start, "the city of London"), (longer, ""), (thinking, "Paris")]
    model.train()
    found = AnswerReader(codec, environment, rows=2).of(model)(pairs)
    assert model.training and found[3] is None
    for place in (0, 1, 2, 4):
        (prefix, answer), value = pairs[place], found[place]
        opening = "\n</think>\n<answer>" if place == 4 else "<answer>"
        whole = [*prefix, *codec.encode(f"{opening} {answer}", trusted=True)]
        gold = codec.encode(answer)
        assert whole[-len(gold) :] == gold
        with torch.no_grad():
            logps = model.eval()(torch.tensor([whole])).logits[0].log_softmax(-1)
        wanted = [logps[len(whole) - len(gold) + i - 1, token].item() for i, token in enumerate(gold)]
        assert value == pytest.approx(sum(wanted) / len(wanted), abs=1e-5)


def test_an_environment_that_does_not_say_how_an_answer_begins_is_refused(tiny):
    with pytest.raises(ConfigError, match="SimpleNamespace does not say how an answer begins"):
        AnswerReader(tiny[1], SimpleNamespace(), rows=2)
