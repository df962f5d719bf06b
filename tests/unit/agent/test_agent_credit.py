"""Credit schemes: what the group scheme gives, who takes part, what a flat group is, which settings name a scheme."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agent.config import GrpoSettings
from agent.learning.credit.assign import assign, is_flat
from agent.learning.credit.config import CreditSettings
from agent.learning.credit.group import GroupCredit
from sleuth.errors import ConfigError, TrainingError
from sleuth.settings import validate
from sleuth.types import Question, ScoredTrajectory, Segment, Trajectory

QUESTION = Question("q", "?", ("x",))
REWARDS = st.lists(st.one_of(st.none(), st.sampled_from([0.0, 0.1, 0.2, 0.1 + 0.2, 0.3, 1.0])), min_size=2, max_size=6)


def scored(reward: float | None, tokens: int = 2) -> ScoredTrajectory:
    """An observation lies between the first token that was sampled and the others."""
    rest = (Segment("policy", (3,) * (tokens - 1), (-1.0,) * (tokens - 1)),) if tokens > 1 else ()
    segments = (Segment("prompt", (1,)), Segment("policy", (2,), (-1.0,)), Segment("environment", (7, 8)), *rest)
    return ScoredTrajectory(Trajectory(QUESTION, segments, (), "answer"), reward)


def given_to(*groups: list[float | None], credit=None):
    return assign(credit or GroupCredit(), [[scored(reward) for reward in group] for group in groups])


@given(st.lists(st.integers(0, 100), min_size=2, max_size=8), st.sampled_from(["group", "batch", "none"]))
def test_the_group_scheme_is_trl_s(rewards, scale):
    groups = torch.tensor([rewards, [*rewards[1:], 50]], dtype=torch.float64) / 10
    wanted = groups - groups.mean(1, keepdim=True)
    spread = groups.std(1, keepdim=True) if scale == "group" else groups.std()
    wanted = wanted if scale == "none" else wanted / (spread + 1e-4)
    found = given_to(*groups.tolist(), credit=GroupCredit(scale))
    assert torch.allclose(torch.tensor(found, dtype=torch.float64)[..., 0], wanted, atol=1e-9)
    assert all(row[0] == row[1] for group in found for row in group)


@given(REWARDS)
def test_equal_rewards_give_exactly_nothing_and_only_they(rewards):
    (group,) = given_to(rewards)
    known = [r for r in rewards if r is not None]
    equal = len({round(r, 6) for r in known}) < 2
    assert is_flat(group) == equal
    for reward, row in zip(rewards, group, strict=True):
        assert (reward is not None and not equal) or row == [0.0, 0.0]


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6 + 0.1, 0.1 + 0.2])
def test_rounding_gives_no_advantage(scale, value):
    equal = [value, value, value * (1 + 2**-52), value]
    first, second = given_to(equal, [0.0, 0.0, 1.0, 1.0], credit=GroupCredit(scale))
    assert is_flat(first) and not is_flat(second)


def test_what_could_not_be_scored_stays_out_of_its_group():
    with_it, without = given_to([0.0, None, 1.0], [0.0, 1.0])
    assert with_it == [without[0], [0.0, 0.0], without[1]]
    assert given_to([None, None], [None, 1.0]) == [[[0.0, 0.0]] * 2, [[0.0, 0.0]] * 2]


class BatchBaseline:
    """REINFORCE with the whole rollout's mean for a baseline."""

    def advantages(self, groups):
        mean = statistics.fmean(s.reward for group in groups for s in group)
        return [[s.reward - mean for s in group] for group in groups]


class LaterIsBetter:
    """A number a token."""

    def advantages(self, groups):
        return [[[float(place) for place in range(sum(s.trajectory.policy_mask))] for s in group] for group in groups]


def test_schemes_of_batches_and_of_tokens_stand_beside_it():
    below, above = given_to([0.0, 0.0], [1.0, 1.0], credit=BatchBaseline())
    assert (below[0], above[0]) == ([-0.5, -0.5], [0.5, 0.5]) and not is_flat(below)
    ((row, alone),) = assign(LaterIsBetter(), [[scored(1.0, tokens=3), scored(0.0, tokens=1)]])
    assert row == [0.0, 1.0, 2.0] and alone == [0.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[[1.0]]], "1 advantages for a trajectory of 2 sampled tokens"),
        ([[float("nan")]], "an advantage that is infinite or not a number"),
        ([[[0.0, float("inf")]]], "an advantage that is infinite or not a number"),
        ([[1.0, 2.0]], r"\[2\] advantages for groups of \[1\] trajectories"),
        ([], r"\[\] advantages for groups of \[1\]"),
        (None, "a NoneType that does not list"),
        ([1.0], "a list that does not list"),
        ([[None]], "an advantage that is a NoneType"),
        ([["high"]], "an advantage that is a str"),
        ([[[[1.0], [2.0]]]], "an advantage that is a list"),
    ],
)
def test_a_scheme_that_breaks_its_contract_is_said(answer, message):
    class Wrong:
        def advantages(self, _groups):
            return answer

    with pytest.raises(TrainingError, match=f"^the credit scheme Wrong gave {message}") as caught:
        given_to([1.0], credit=Wrong())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [torch.tensor([[0.5]]), np.float32([[0.5]]), [[np.float32(0.5)]], [[(0.5, 0.5)]]])
def test_a_scheme_may_count_in_numpy_or_torch(answer):
    class Counted:
        def advantages(self, _groups):
            return answer

    assert given_to([1.0], credit=Counted()) == [[[0.5, 0.5]]]


@pytest.mark.parametrize("rewards", [[1000.0, 1000.0005], [1.0, 1.0 + 1e-7], [0.0, 1e-9]])
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_small_differences_are_differences(scale, rewards):
    (group,) = given_to(rewards, credit=GroupCredit(scale))
    assert not is_flat(group)


@pytest.mark.parametrize("rewards", [[0.1 + 0.2, 0.3], [0.1 + 0.2 - 0.3, 0.0], [0.7 + 0.1, 0.8], [-0.1 - 0.2, -0.3]])
def test_parts_that_are_added_up_differently_are_equal(rewards):
    assert given_to(rewards) == [[[0.0, 0.0]] * 2]


def test_a_flat_rollout_and_a_lone_scored_row_teach_nothing_at_any_scale():
    for scale in ("group", "batch", "none"):
        credit = GroupCredit(scale)
        assert all(map(is_flat, given_to([0.3, 0.3], [0.3, 0.1 + 0.2], credit=credit)))
        assert all(map(is_flat, given_to([0.7, None], [None, None], credit=credit)))


def test_settings_name_a_scheme():
    assert GrpoSettings().credit.open() == GroupCredit("group")
    dumped = GrpoSettings(credit={"scale": "none"}).model_dump(mode="json")["credit"]
    assert dumped == {"kind": "group", "scale": "none"}
    assert GrpoSettings(credit=dumped).credit.open() == GroupCredit("none")
    outside = GrpoSettings(credit={"kind": f"{__name__}:BatchBaseline"})
    assert isinstance(outside.credit.open(), BatchBaseline)
    assert GrpoSettings(**outside.model_dump(mode="json")) == outside
    for kind in CreditSettings.KINDS:
        assert callable(CreditSettings.of(kind=kind).open().advantages)
        assert GrpoSettings(credit=kind).credit == CreditSettings.of(kind=kind)


@pytest.mark.parametrize(
    ("credit", "message"),
    [
        ({"kind": "grup"}, "grpo.yaml: credit: unknown kind of credit scheme; did you mean 'group'"),
        ({"scal": "none"}, "credit.scal.*did you mean 'scale'"),
        ({"kind": "group", "scale": "all"}, "credit.scale"),
        (
            {"kind": "my.module:Scheme", "scale": "none"},
            "scale does nothing for .* of kind my.module:Scheme",
        ),
        (3, "credit: .*valid dictionary"),
        ("leave_on_out", "did you mean 'leave_one_out'"),
    ],
)
def test_a_wrong_setting_names_the_right_one(credit, message):
    with pytest.raises(ConfigError, match=message):
        validate(GrpoSettings, {"credit": credit}, "grpo.yaml")


def test_a_scheme_that_is_not_there_or_takes_no_such_option_is_one_line():
    for credit, message in (
        ({"kind": "no.such:Scheme"}, "cannot import no.such"),
        ({"kind": f"{__name__}:BatchBaseline", "options": {"a": 1}}, "look at its options"),
        ({"kind": "builtins:dict"}, "has no method advantages"),
    ):
        with pytest.raises(ConfigError, match=message):
            GrpoSettings(credit=credit).credit.open()


def test_a_config_of_before_there_were_schemes_still_opens():
    assert GrpoSettings(scale_rewards="batch").credit.open() == GroupCredit("batch")
    assert GrpoSettings(scale_rewards="group", credit={"scale": "none"}).credit.open() == GroupCredit("none")
    with pytest.raises(ConfigError, match=r"credit\.scale now"):
        validate(GrpoSettings, {"scale_rewards": "none", "credit": {"kind": "group"}}, "x")
    with pytest.raises(ConfigError, match="scale"):
        validate(GrpoSettings, {"scale_rewards": "all"}, "x")
