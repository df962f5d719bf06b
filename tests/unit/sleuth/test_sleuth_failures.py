"""Failures on record, in the log, and apart from the errors that a user must mend."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sleuth.errors import ConfigError, RetrieverError
from sleuth.failures import FailureLog, cause, failure_of, scored_by, unscored
from sleuth.types import Question, ScoredTrajectory, Trajectory

QUESTION = Question("q7", "?", ("x",), file="data/dev.jsonl")
PLAYED = Trajectory(QUESTION, (), (), "answer")


def raised(error: Exception) -> Exception:
    try:
        raise error
    except (KeyError, ValueError) as caught:
        return caught


def test_the_first_failure_of_a_kind_is_logged_whole_and_later_ones_in_a_line(caplog):
    failures = FailureLog()
    for error in (KeyError("a"), KeyError("b"), ValueError("two\nlines")):
        failures.note(unscored(PLAYED, failure_of("the environment", raised(error))).trajectory)
    failures.note(PLAYED)
    first, second, third = (record.getMessage() for record in caplog.records)
    said = "question 'q7' of data/dev.jsonl is unscored: the environment failed: "
    assert first.startswith(f"{said}KeyError: 'a'\nTraceback (most recent call last):\n") and "raise error" in first
    assert second == f"{said}KeyError: 'b'"
    assert third.startswith(f"{said}ValueError: two\nTraceback")


def test_a_message_that_quotes_a_passage_cannot_steer_the_terminal(caplog):
    FailureLog().note(unscored(PLAYED, failure_of("the environment", raised(ValueError("\x1b[2J")))).trajectory)
    assert "\x1b" not in caplog.text and "ValueError: \\x1b[2J" in caplog.text


def test_a_message_may_be_missing_or_without_end():
    assert failure_of("x", KeyError()).error == "KeyError"
    assert len(failure_of("x", ValueError("a" * 10_000)).error) < 400


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), "much"])
def test_whatever_scores_a_reward_that_is_no_number_is_unscored(reward):
    (scored,) = scored_by(lambda played: [ScoredTrajectory(one, reward) for one in played], [PLAYED])
    assert scored.reward is None and not scored.trajectory.scorable and cause(scored.trajectory) == "the scorer"


def test_errors_that_the_user_must_mend_are_raised_and_those_of_a_retriever_are_not():
    def scoring(error):
        def score(_played):
            raise error

        return score

    for error in (ConfigError("no such key"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            scored_by(scoring(error), [PLAYED])
    (scored,) = scored_by(scoring(RetrieverError("down", "start it")), [PLAYED])
    assert str(scored.trajectory.failure) == "the scorer failed: RetrieverError: down (start it)"


def test_one_that_spoils_a_batch_is_unscored_alone():
    spoilt = replace(PLAYED, question=Question("spoilt", "?", ()))

    def score(played):
        if spoilt in played:
            raise KeyError("x")
        return [ScoredTrajectory(one, 1.0) for one in played]

    scored = scored_by(score, [PLAYED, spoilt, PLAYED])
    assert [one.reward for one in scored] == [1.0, None, 1.0]
    assert scored[1].trajectory.failure.error == "KeyError: 'x'"
    short = scored_by(lambda _played: [], [PLAYED])
    assert str(short[0].trajectory.failure).endswith("ValueError: 0 results for 1 trajectories")


def test_why_a_trajectory_is_unscored_in_words():
    assert cause(PLAYED) == "no reward applies"
    assert cause(Trajectory(QUESTION, (), (), "retriever_failed")) == "retriever_failed"  # from before failures
