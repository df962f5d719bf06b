"""Credit by turns, worked out by hand: discounts, their mixture with the outcome, and what refuses it."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
from played_turns import EOS, scored

from agent.config import GrpoSettings
from agent.learning.credit.assign import advantages_kept, assign, is_flat, refuse_by_token
from agent.learning.credit.group import GroupCredit
from agent.learning.credit.reinforce import ReinforceCredit
from agent.learning.credit.turn_scores import GoldFound, PureTurnScorer, TurnScoreSettings
from agent.learning.credit.turns import TurnCredit
from agent.learning.rollouts import to_row
from agent.learning.trainer import _over_columns
from sleuth.errors import ConfigError, TrainingError
from sleuth.settings import validate

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
        ({"weight": 0.5}, "weight is about turn scores, and there is no score"),
        ({"baseline": "group", "gamma": 0.5}, "leave baseline out"),
    ],
)
def test_a_wrong_setting_of_turns_is_said(credit, message):
    with pytest.raises(ConfigError, match=message):
        validate(GrpoSettings, {"credit": {"kind": "turns", **credit}}, "grpo.yaml")


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
