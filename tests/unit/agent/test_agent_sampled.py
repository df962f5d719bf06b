"""Sampled evaluation by hand-worked figures."""

import pytest

from agent.sampled import majority, sampled_report
from sleuth.types import Answer, Generation, Question, ScoredTrajectory, Segment, StopReason, Trajectory, Turn


def row(identity: str, answer: str | None, stop: StopReason = "answer") -> ScoredTrajectory:
    turns = () if answer is None else (Turn(Generation((1,), (0.0,), "stop"), "", Answer(answer)),)
    return ScoredTrajectory(Trajectory(Question(identity, "?", ("x",)), (Segment("prompt", (1,)),), turns, stop), None)


def em(answer, accepted):
    return float(answer is not None and answer.lower() in accepted)


def test_mean_pass_and_majority():
    samples = [
        [row("q", "x"), row("r", "y"), row("s", None, "retriever_failed")],
        [row("q", "y"), row("r", "X"), row("s", None, "retriever_failed")],
        [row("q", "Y"), row("r", "x"), row("s", "x")],
    ]
    report = sampled_report(samples, {"em": em}, str.lower, resamples=200)
    assert (report.overall.n, report.overall.scored) == (3, 2), "of s one sample only: pass@3 would be pass@1"
    assert report.overall.means["em"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert report.overall.means["pass@3"] == 1.0
    assert report.overall.means["majority@3"] == pytest.approx(1 / 2), "q votes for y, r for x"
    found = report.overall.intervals["em"]
    assert found.low < report.overall.means["em"] < found.high
    methods = report.to_dict()["interval_methods"]
    assert methods == {"em": "bootstrap", "pass@3": "wilson", "majority@3": "wilson"}


@pytest.mark.parametrize(
    ("answers", "winner"),
    [(["b", "a", "A"], "a"), (["b", "a"], "b"), ([None, None, "c"], "c"), ([None], None)],
)
def test_the_majority_is_written_as_first_seen_and_ties_go_to_the_first(answers, winner):
    assert majority(answers, str.lower) == winner
