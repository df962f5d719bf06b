"""An environment, a reward or a retriever that raises on one question costs that question and nothing else."""

from __future__ import annotations

import pytest
from test_agent_rollout import ANSWER, GREEDY, SEARCH, Shelf, ask, make
from test_agent_rollout_async import OneByOne

from agent.evaluate import evaluate
from agent.learning.credit.group import GroupCredit
from agent.learning.rollouts import GroupRollouts
from agent.rollout import RolloutDriver
from sleuth.errors import ConfigError
from sleuth.trajectories import TrajectoryWriter, close_trajectories, read_trajectories
from sleuth.types import Question, ScoredTrajectory

SCRIPT = {name: [SEARCH.format("Paris"), ANSWER] for name in ("a", "b", "c")}


class Faulty:
    """An environment that raises ``error`` in ``method`` of question ``b``, or when it is made."""

    def __init__(self, inner, method, error):
        self._inner, self._method, self._error, self._question = inner, method, error, ""

    def __getattr__(self, name):
        found = getattr(self._inner, name)
        if name == "reset":
            return lambda question: self._reset(question)
        if name != self._method or self._question != "b":
            return found
        if callable(found):
            return self._raise
        raise self._error

    def _raise(self, *_args):
        raise self._error

    def _reset(self, question):
        self._question = question.id
        if self._method == "reset" and question.id == "b":
            raise self._error
        return self._inner.reset(question)


def faulty(tiny, method, error=None, kind=None, **settings):
    plain = make(tiny, SCRIPT, Shelf(), **settings)
    policy = kind(plain.codec, lambda question, turn: SCRIPT[question][turn]) if kind else plain.policy
    raised = error or KeyError("state")
    return RolloutDriver(policy, plain.codec, lambda: Faulty(plain.environment(), method, raised), plain.retriever, 2)


@pytest.mark.parametrize("kind", [None, OneByOne])
@pytest.mark.parametrize(
    ("method", "sampled"),
    [
        *(("reset", 0), ("turn_tokens", 0), ("total_tokens", 0)),
        *(("thinking", 1), ("over", 1), ("step", 1), ("observe", 1)),
    ],
)
def test_an_environment_that_raises_leaves_its_question_unscored(tiny, kind, method, sampled):
    a, b, c = faulty(tiny, method, kind=kind).run(ask("a", "b", "c"), GREEDY)
    assert (a.stop, b.stop, c.stop) == ("answer", "environment_failed", "answer")
    assert not b.scorable and str(b.failure) == "the environment failed: KeyError: 'state'"
    assert "Traceback" in b.failure.trace
    assert len(b.turns) == sampled
    assert sum(b.policy_mask) == sum(len(turn.generation.token_ids) for turn in b.turns)


def test_an_environment_that_says_nothing_has_failed_too(tiny):
    plain = make(tiny, SCRIPT, Shelf())

    class Silent(Faulty):
        def _reset(self, question):
            return None if question.id == "b" else self._inner.reset(question)

    made = RolloutDriver(
        plain.policy, plain.codec, lambda: Silent(plain.environment(), "", KeyError()), plain.retriever, 2
    )
    assert [t.stop for t in made.run(ask("a", "b"), GREEDY)] == ["answer", "environment_failed"]


def test_one_that_cannot_be_made_and_one_that_fails_with_its_passages(tiny):
    plain = make(tiny, SCRIPT, Shelf())
    broken = RolloutDriver(plain.policy, plain.codec, lambda: {}["no"], plain.retriever, 2)
    assert [t.stop for t in broken.run(ask("a"), GREEDY)] == ["environment_failed"]
    rag = make(tiny, {"a": [ANSWER], "b": [ANSWER]}, Shelf(), kind="rag")
    failing = RolloutDriver(
        rag.policy, rag.codec, lambda: Faulty(rag.environment(), "observe", KeyError("x")), rag.retriever, 2
    )
    a, b = failing.run(ask("a", "b"), GREEDY)
    assert (a.stop, b.stop) == ("answer", "environment_failed") and len(b.given) == 1 and not b.segments


@pytest.mark.parametrize("error", [ConfigError("no such preset"), KeyboardInterrupt()])
def test_a_wrong_setting_and_an_interrupt_end_at_once(tiny, error):
    with pytest.raises(type(error)):
        faulty(tiny, "step", error).run(ask("a", "b"), GREEDY)


def test_a_retriever_that_breaks_its_contract_fails_its_questions_only(tiny):
    class Short(Shelf):
        def search(self, queries, k):
            return super().search(queries, k)[1:]

    a, b = make(tiny, {"a": SCRIPT["a"], "b": [ANSWER]}, Short()).run(ask("a", "b"), GREEDY)
    assert (a.stop, b.stop) == ("retriever_failed", "answer")
    assert a.failure.by == "the retriever" and a.failure.error.startswith("ValueError: ")


class Moody:
    """Scores 1, 2, 3, …; raises or gives ``value`` on the second."""

    def __init__(self, value=None):
        self.value, self.seen = value, 0

    def score_all(self, played):
        """All together, as long as that does not raise."""
        return [self.score(one) for one in played] if self.value is not None or len(played) == 1 else {}["batch"]

    def score(self, played):
        self.seen += 1
        if self.seen == 2:
            if self.value is None:
                raise ZeroDivisionError("division by zero")
            return ScoredTrajectory(played, self.value)
        return ScoredTrajectory(played, float(self.seen))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_rollout_counts_and_names_what_it_could_not_score(tiny, value, caplog):
    questions = [Question("a", "what is the capital ?", ("Paris",), file="train.jsonl")]
    rollouts = GroupRollouts(questions, Moody(value), GroupCredit(), group_size=4, temperature=1.0, seed=0)
    record = rollouts.play(["0"] * 4, 0, 0, make(tiny, SCRIPT, Shelf()))
    assert [s.reward for s in record.scored] == [1.0, None, 3.0, 4.0]
    assert record.metrics["rollout/unscored"] == 0.25
    (line,) = [r.getMessage() for r in caplog.records if r.name == "sleuth.unscored"]
    kind = "ZeroDivisionError: division by zero" if value is None else f"ValueError: the reward is {value}"
    assert line.startswith(f"question 'a' of train.jsonl is unscored: the scorer failed: {kind}\n")
    assert ("Traceback" in line) == (value is None)


def test_an_evaluation_goes_on_and_counts_what_failed(tiny, tmp_path, caplog):
    exact = lambda prediction, answers: float(prediction in answers)
    options = {"metrics": {"em": exact}, "score": Moody().score_all, "out": tmp_path}
    report = evaluate(faulty(tiny, "observe"), ask("b", "a", "c"), **options)
    figures = report.to_dict()
    assert (figures["n"], figures["scored"], figures["unscored"], figures["em"]) == (3, 1, 2, 1.0)
    assert figures["failures"] == {"the environment": 1, "the scorer": 1}
    assert figures["stops"] == {"answer": 2, "environment_failed": 1}
    assert [r.getMessage().partition(" is")[0] for r in caplog.records] == ["question 'b'", "question 'a'"]
    again = evaluate(make(tiny, SCRIPT, Shelf()), ask("b", "a", "c"), **options | {"score": Moody(0.5).score_all})
    assert (again.overall.scored, again.failures) == (3, {})  # what was unscored is played again


def test_what_failed_is_kept_with_the_trajectory(tiny, tmp_path):
    played = faulty(tiny, "step").run(ask("a", "b"), GREEDY)
    rows = [ScoredTrajectory(t, 1.0 if t.scorable else None) for t in played]
    with TrajectoryWriter(tmp_path / "trajectories.jsonl") as writer:
        for row in rows:
            writer.write(row)
    assert list(read_trajectories(tmp_path)) == rows
    close_trajectories(tmp_path)
    assert list(read_trajectories(tmp_path)) == rows
