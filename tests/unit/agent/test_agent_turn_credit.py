"""Credit by turns, worked out by hand: discounts, turn scores, their mixture with the outcome, and what refuses it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch

from agent.config import GrpoSettings
from agent.learning.answer_logprobs import AnswerReader
from agent.learning.credit.assign import advantages_kept, assign, is_flat, refuse_by_token
from agent.learning.credit.config import CreditSettings
from agent.learning.credit.group import GroupCredit
from agent.learning.credit.information_gain import InformationGain
from agent.learning.credit.reinforce import ReinforceCredit
from agent.learning.credit.turn_scores import GoldFound, PureTurnScorer, TurnScoreSettings
from agent.learning.credit.turns import TurnCredit
from agent.learning.rollouts import GroupRollouts, to_row
from agent.learning.trainer import _over_columns
from envs.config import EnvironmentSettings
from envs.search_env import SearchEnvironment
from sleuth.errors import ConfigError, TrainingError
from sleuth.settings import validate
from sleuth.types import (
    Answer,
    Call,
    Generation,
    Hit,
    Invalid,
    Passage,
    Question,
    ScoredTrajectory,
    Search,
    Segment,
    Trajectory,
    Turn,
)

QUESTION = Question("q", "?", ("Paris", "the city"), ("France", "Seine"))
EOS = 99


def played(*lengths: int, question: Question = QUESTION, hits: tuple[tuple[str, ...], ...] = ()) -> Trajectory:
    """Searches and an answer, of so many sampled tokens, with one observed token between turns.

    ``hits``: titles that each search finds.
    """
    segments, turns = [Segment("prompt", (1, 2))], []
    for place, length in enumerate(lengths):
        last = place == len(lengths) - 1
        tokens = tuple(range(10 * place + 10, 10 * place + 10 + length))
        found = tuple(
            Hit(Passage(title, title, f"about {title}"), 1.0, rank + 1)
            for rank, title in enumerate(hits[place] if place < len(hits) else ())
        )
        action = Answer("x") if last else Search("s")
        turns.append(Turn(Generation(tokens, (-1.0,) * length, "stop"), "", action, found))
        segments.append(Segment("policy", tokens, (-1.0,) * length))
        segments += [] if last else [Segment("environment", (7,))]
    return Trajectory(question, tuple(segments), tuple(turns), "answer", {"generate": 0.0, "retrieve": 0.0})


def scored(reward: float | None, scores: tuple[float | None, ...] | None, *lengths: int) -> ScoredTrajectory:
    return ScoredTrajectory(played(*(lengths or (1,) * len(scores or (1,)))), reward, turn_scores=scores)


# Discount


def test_a_reward_at_the_last_turn_is_discounted_by_turns_and_observations_are_skipped():
    """Mask 1, 1, 0, 1 and gamma .5 give .5, .5, -, 1, whether the reward is the outcome or a score of that turn."""
    outcome = TurnCredit(outcome=ReinforceCredit(), gamma=0.5)
    own = TurnCredit(scorer=None, outcome=None, gamma=0.5, baseline="none", scale=False)
    for credit, one in ((outcome, scored(1.0, None, 2, 1)), (own, scored(1.0, (0.0, 1.0), 2, 1))):
        ((advantages,),) = assign(credit, [[one]])
        assert advantages == [0.5, 0.5, 1.0]
        row = to_row(one, EOS)
        assert row.mask == [1, 1, 0, 1, 0]
        assert _over_columns(advantages, row.mask) == [0.5, 0.5, 0.0, 1.0, 0.0]


def test_three_turns_and_their_own_scores_add_up_from_behind():
    credit = TurnCredit(outcome=ReinforceCredit(), gamma=0.5, weight=2.0, baseline="none", scale=False)
    ((advantages,),) = assign(credit, [[scored(1.0, (0.25, None, 0.5), 1, 2, 1)]])
    # last: 1 + 2 x .5; second: not judged, half of that; first: 2 x .25 and half of the second
    assert advantages == [1.0, 1.0, 1.0, 2.0]


def test_who_answers_at_a_turn_is_compared_with_who_searches_on_there():
    """Every search earns 1: one searches twice and answers, one searches once, one answers at once."""
    group = [scored(0.0, (1.0, 1.0, None)), scored(0.0, (1.0, None)), scored(0.0, (None,))]
    ((first, second, third),) = assign(TurnCredit(outcome=GroupCredit(), weight=0.5, scale=False), [group])
    # returns from the first turn 2, 1, 0, from the second 1, 0, from the third 0
    assert (first, second, third) == ([0.5, 0.25, 0.0], [0.0, -0.25], [-0.5])
    ((first, second, third),) = assign(TurnCredit(outcome=GroupCredit(), gamma=0.5), [group])
    # 1.5, 1, 0: mean 5/6; 1, 0: mean 1/2
    spread = math.sqrt(((4 / 6) ** 2 + (1 / 6) ** 2 + (5 / 6) ** 2) / 2) + 1e-4
    late = 0.5 / (math.sqrt(0.5) + 1e-4)
    assert first == pytest.approx([(4 / 6) / spread, late, 0.0])
    assert second == pytest.approx([(1 / 6) / spread, -late])
    assert third == pytest.approx([(-5 / 6) / spread])
    ((first, second, third),) = assign(TurnCredit(outcome=GroupCredit(), baseline="group"), [group])
    assert (first, second, third) == ([0.0] * 3, [0.0] * 2, [0.0]), "among searches alone all earned the same"


# Normalisation and mixture


def test_scores_are_normalised_over_all_judged_turns_of_the_group():
    group = [scored(1.0, (1.0, 0.0, None)), scored(0.0, (1.0, None)), scored(0.0, None, 1)]
    credit = TurnCredit(outcome=GroupCredit(), gamma=0.5, weight=0.5, baseline="group")
    ((first, second, third),) = assign(credit, [group])
    # scores 1, 0, 1: mean 2/3, deviation sqrt(1/3); rewards 1, 0, 0: mean 1/3, deviation sqrt(1/3)
    spread = math.sqrt(1 / 3) + 1e-4
    up, down = (1 / 3) / spread, (-2 / 3) / spread
    won, lost = (2 / 3) / spread, (-1 / 3) / spread
    assert first == pytest.approx([0.5 * up + 0.5 * (0.5 * down + 0.5 * won), 0.5 * down + 0.5 * won, won])
    assert second == pytest.approx([0.5 * up + 0.5 * lost, lost])
    assert third == pytest.approx([lost]), "who is not judged has the outcome's credit alone"


@pytest.mark.parametrize("baseline", ["turn", "group"])
def test_a_group_is_flat_only_where_neither_outcomes_nor_turns_differ(baseline):
    credit = TurnCredit(outcome=GroupCredit(), gamma=0.9, baseline=baseline)
    equal, differing, unequal = assign(
        credit,
        [
            [scored(0.3, (0.1 + 0.2, 0.3, None)), scored(0.1 + 0.2, (0.3, 0.1 + 0.2, None))],
            [scored(0.0, (1.0, None)), scored(0.0, (0.0, None))],
            [scored(0.0, (1.0, None)), scored(1.0, (1.0, None))],
        ],
    )
    assert equal == [[0.0, 0.0, 0.0]] * 2 and is_flat(equal)
    assert not is_flat(differing) and not is_flat(unequal)
    assert [row[1] for row in differing] == [0.0, 0.0], "the answers earned the same"


def test_what_could_not_be_scored_gets_nothing_and_moves_no_mean():
    credit = TurnCredit(outcome=GroupCredit())
    group = [scored(1.0, (1.0, None)), scored(0.0, (0.0, None))]
    with_it = assign(credit, [[*group, scored(None, (5.0, None))]])
    assert with_it == [[*assign(credit, [group])[0], [0.0, 0.0]]]


def test_groups_that_lie_across_processes_are_normalised_over_all_of_them(monkeypatch):
    from agent.learning import trainer

    rows = [scored(0.0, (score, None)) for score in (0.0, 0.0, 0.0, 1.0)]
    monkeypatch.setattr(trainer, "gather_object", lambda mine: [*rows[:3], *mine])
    credit = TurnCredit(outcome=GroupCredit(), scale=False)
    second = SimpleNamespace(
        accelerator=SimpleNamespace(num_processes=2, process_index=3), num_generations=4, _credit=credit
    )
    assert trainer.MeasuredGRPOTrainer._advantages_of(second, rows[3:]) == ([[0.75, 0.0]], 0.0)


# Gold found


def test_a_search_that_brings_a_title_not_seen_before_earns_one():
    searches = (("Other", "france"), ("France",), ("France", "Seine"), ("Seine",))
    trajectory = played(1, 1, 1, 1, 1, hits=searches)
    assert GoldFound().score_turns(QUESTION, trajectory) == (1.0, 0.0, 1.0, 0.0, None)
    given = replace(trajectory, given=(Hit(Passage("p", "Seine", ""), 1.0, 1),))
    assert GoldFound().score_turns(QUESTION, given) == (1.0, 0.0, 0.0, 0.0, None)


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


# Information gain


def a_model(values):
    """Log-probs by (length of the transcript, answer); counts what it is asked."""
    asked = []

    def answers(pairs):
        asked.extend(pairs)
        return [values[len(prefix), answer] for prefix, answer in pairs]

    answers.asked = asked
    return answers


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


# Rollouts and dynamic sampling


class Playing:
    """Plays searches that find these titles, in turn."""

    codec = SimpleNamespace(eos_token_id=EOS)

    def __init__(self, found):
        self.found, self.count = found, 0

    def run(self, questions, sampling, seeds):
        out = []
        for question in questions:
            out.append(played(1, 1, question=question, hits=(self.found[self.count % len(self.found)],)))
            self.count += 1
        return out


def rollouts_of(questions, scorer, rewards, *, credit=None, oversample=1.0, read=None):
    given = iter(rewards * 20)

    class Scorer:
        def score_all(self, trajectories):
            return [ScoredTrajectory(trajectory, next(given)) for trajectory in trajectories]

    return GroupRollouts(
        questions,
        Scorer(),
        credit or TurnCredit(outcome=GroupCredit()),
        group_size=2,
        temperature=1.0,
        seed=0,
        oversample=oversample,
        turn_scorer=scorer,
        read=read,
    )


def test_dynamic_sampling_keeps_a_group_whose_turns_differ():
    """Every reward is 0; one search of the first group found gold, none of the second."""
    found = [("France",), ("x",), ("x",), ("x",)]
    gold = PureTurnScorer(GoldFound(), "gold_found")
    driver = Playing(found)
    record = rollouts_of([QUESTION], gold, [0.0], oversample=2.0).play(["0"] * 4, 0, 0, driver)
    assert [s.turn_scores for s in record.scored[:2]] == [(1.0, None), (0.0, None)]
    assert record.metrics["groups/replaced"] == 1.0 and driver.count == 6, "the second group alone was replaced"
    assert record.metrics["time/credit"] >= 0.0 and record.metrics["turns/judged"] == 1.0
    outcome = rollouts_of([QUESTION], None, [0.0], credit=GroupCredit(), oversample=2.0)
    driver = Playing(found)
    assert outcome.play(["0"] * 4, 0, 0, driver).metrics["groups/replaced"] == 0.0
    assert driver.count == 8, "by the outcome alone both are flat, and so are their replacements"


def test_information_gain_decides_which_groups_are_flat_while_they_are_played():
    """The model likes a transcript for its last token, so that only the first group's turns differ."""
    likes = iter([-1.0, -0.5, -1.0, *[-1.0] * 20])

    def read(_model):
        return lambda pairs: [next(likes) if len(p) > 2 else -2.0 for p, _ in pairs]

    class Unlike(Playing):
        """No two transcripts are alike, so that none is read once for two."""

        def run(self, questions, sampling, seeds):
            found = []
            for trajectory in super().run(questions, sampling, seeds):
                segments = list(trajectory.segments)
                segments[2] = Segment("environment", (1000 + self.count + len(found),))
                found.append(replace(trajectory, segments=tuple(segments)))
            return found

    one_answer = replace(QUESTION, answers=("Paris",))
    rollouts = rollouts_of([one_answer], InformationGain(), [0.0], oversample=1.5, read=read)
    assert rollouts.needs_model
    driver = Unlike([()])
    record = rollouts.play(["0"] * 4, 0, 0, driver, model="the trained one")
    assert driver.count == 6
    assert [s.turn_scores for s in record.scored[:2]] == [(1.0, None), (1.5, None)]


def test_what_is_played_without_the_model_is_judged_when_it_is_used():
    read = lambda model: lambda pairs: [model * len(p) for p, _ in pairs]
    rollouts = rollouts_of([QUESTION], InformationGain(), [0.0, None], read=read)
    record = rollouts.play(["0", "0"], 3, 0, Playing([()]))
    assert [s.turn_scores for s in record.scored] == [None, None] and "time/credit" not in record.metrics
    judged = rollouts.judge(record, 0.5)
    assert [s.turn_scores for s in judged.scored] == [(1.0, None), None], "what is unscored is not judged"
    assert judged.metrics["turns/score"] == 1.0 and "time/credit" in judged.metrics
    assert [s.origin for s in judged.scored] == [s.origin for s in record.scored]


def test_groups_are_not_replaced_by_a_judgement_that_is_not_there_yet():
    rollouts = rollouts_of([QUESTION], InformationGain(), [0.0], oversample=2.0, read=lambda _: None)
    with pytest.raises(TrainingError, match="the model that judges their turns is busy"):
        rollouts.play(["0", "0"], 0, 0, Playing([()]))


# Records


def test_a_record_keeps_one_advantage_a_turn_where_they_differ():
    assert advantages_kept([1.0, 1.0, 1.0], [2, 1]) is None
    assert advantages_kept([0.5, 0.5, 1.0], [2, 1]) == (0.5, 1.0)
    assert advantages_kept([0.5, 0.25, 1.0], [2, 1]) == (0.5, 0.25, 1.0)
    assert advantages_kept([0.5, 1.0], [1, 0, 1]) == (0.5, 0.0, 1.0)
    assert advantages_kept([], []) is None


# Settings


def test_one_line_of_a_config_is_a_scheme():
    settings = validate(GrpoSettings, {"credit": {"kind": "turns", "score": "gold_found", "gamma": 0.9}}, "x")
    assert settings.credit.open() == TurnCredit(
        PureTurnScorer(GoldFound(), "gold_found"), GroupCredit("group"), gamma=0.9
    )
    dumped = settings.model_dump(mode="json")["credit"]
    assert dumped["score"] == {"kind": "gold_found"} and dumped["outcome"] == {"kind": "group", "scale": "group"}
    assert GrpoSettings(**settings.model_dump(mode="json")) == settings
    mixed = {"kind": "turns", "score": {"kind": "information_gain"}, "outcome": {"kind": "leave_one_out"}}
    assert GrpoSettings(credit=mixed).credit.needs_model
    for kind in TurnScoreSettings.KINDS:
        assert callable(TurnScoreSettings.of(kind=kind).open().score)


@pytest.mark.parametrize(
    ("credit", "message"),
    [
        ({"score": "gold"}, "credit.score: unknown kind of turn score; choose one of: gold_found, information_gain"),
        ({"gamma": 1.5}, "credit.gamma"),
        ({"weight": -1}, "credit.weight"),
        ({"outcome": {"kind": "turns"}}, "the outcome's scheme cannot be turns itself"),
        ({"scale": "batch"}, "credit.scale"),
        ({"baseline": "batch"}, "credit.baseline"),
    ],
)
def test_a_wrong_setting_of_turns_is_said(credit, message):
    with pytest.raises(ConfigError, match=message):
        validate(GrpoSettings, {"credit": {"kind": "turns", **credit}}, "grpo.yaml")


def test_a_judge_without_score_turns_is_one_line():
    for score, message in (
        ("builtins:dict", "has no method score_turns"),
        ({"kind": f"{__name__}:Late", "options": {"at": 1}}, "look at its options"),
        ("no.such:Judge", "cannot import no.such"),
    ):
        with pytest.raises(ConfigError, match=message):
            CreditSettings.of(kind="turns", score=score).open()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "vespo"}, "do not go with loss vespo: choose bnpo, cispo, dapo, dr_grpo, grpo, sapo"),
        ({"loss": "luspo"}, "need importance token"),
        ({"algorithm": "gspo"}, "need importance token"),
        ({"loss": "sapo", "importance": "sequence"}, "need importance token"),
    ],
)
def test_losses_that_would_mix_turns_are_refused_in_one_line(values, message):
    with pytest.raises(ConfigError, match=message) as caught:
        validate(GrpoSettings, {"credit": {"kind": "turns"}, **values}, "x")
    assert "\n" not in caught.value.message
    validate(GrpoSettings, values, "x")


def test_a_scheme_of_ones_own_that_differs_by_token_is_refused_there_too():
    refuse_by_token([[1.0, 1.0]], "vespo", "token")
    refuse_by_token([[1.0, 2.0]], "grpo", "token")
    for loss, importance in (("vespo", "token"), ("luspo", "sequence"), ("grpo", "sequence")):
        with pytest.raises(TrainingError, match="advantages that differ by turn"):
            refuse_by_token([[1.0, 1.0], [1.0, 2.0]], loss, importance)


def test_asynchronous_rollouts_cannot_be_replaced_by_what_the_model_thinks_of_them():
    from workflows.config import RunSettings

    grpo = {"oversample": 2.0, "credit": {"kind": "turns", "score": "information_gain"}}
    run = {"out": "x", "policy": {"model": "m"}, "cluster": {"schedule": "async"}, "grpo": grpo}
    with pytest.raises(ConfigError, match=r"set grpo\.oversample to 1, or grpo\.credit\.score to gold_found"):
        validate(RunSettings, run, "x")
    validate(RunSettings, {**run, "cluster": {}}, "x")
    validate(RunSettings, {**run, "grpo": {**grpo, "oversample": 1.0}}, "x")
    validate(RunSettings, {**run, "grpo": {**grpo, "credit": {"kind": "turns", "score": "gold_found"}}}, "x")
