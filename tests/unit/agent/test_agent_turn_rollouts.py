"""Rollouts whose turns are judged: dynamic sampling, and judging with the model or later."""

from __future__ import annotations

from dataclasses import replace

import pytest
from played_turns import QUESTION, Playing, rollouts_of

from agent.learning.credit.group import GroupCredit
from agent.learning.credit.information_gain import InformationGain
from agent.learning.credit.turn_scores import GoldFound, PureTurnScorer
from sleuth.errors import ConfigError, TrainingError
from sleuth.settings import validate
from sleuth.types import (
    Segment,
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


def test_asynchronous_rollouts_cannot_be_replaced_by_what_the_model_thinks_of_them():
    from workflows.config import RunSettings

    grpo = {"oversample": 2.0, "credit": {"kind": "turns", "score": "information_gain"}}
    run = {"out": "x", "policy": {"model": "m"}, "cluster": {"schedule": "async"}, "grpo": grpo}
    with pytest.raises(ConfigError, match=r"set grpo\.oversample to 1, or grpo\.credit\.score to gold_found"):
        validate(RunSettings, run, "x")
    validate(RunSettings, {**run, "cluster": {}}, "x")
    validate(RunSettings, {**run, "grpo": {**grpo, "oversample": 1.0}}, "x")
    validate(RunSettings, {**run, "grpo": {**grpo, "credit": {"kind": "turns", "score": "gold_found"}}}, "x")
