"""Turns that go on: a stop string inside a thought ends none, whatever samples."""

from __future__ import annotations

import pytest
from tiny_tokenizers import byte_level

from agent.codec import HFCodec
from agent.demonstrate import play
from agent.events import ThoughtOpen, TokenSampled
from agent.policies.scripted import ScriptedPolicy
from agent.rollout import RolloutDriver
from agent.warmstart import to_example
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from envs.plans import Reciter
from rewards.format import Format
from sleuth.trajectories import from_dict, to_dict
from sleuth.types import (
    Answer,
    Generation,
    Hit,
    Passage,
    Plan,
    PlanStep,
    Question,
    Sampling,
    ScoredTrajectory,
    Search,
)

QUESTION = Question("q", "What is the capital of Norway?", ("Oslo",))
MENTION = "I could <search> x </search>"
FOUND = " or find it.</think> <search> Norway </search>"
ANSWER = "<think> Read it. </think> <answer> Oslo </answer>"

SHORT = "<answer>x</answer>"


class Shelf:
    fingerprint = "shelf"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def search(self, queries, k):
        self.asked += queries
        return [[Hit(Passage("p", "Norway", "Its capital is Oslo."), 1.0, 1)] for _ in queries]


class Pieces:
    """Says one piece for each request, as an engine does that stops at a stop string; log-probs count up."""

    trainable = True

    def __init__(self, codec, *pieces: str) -> None:
        self.codec, self.pieces = codec, [codec.encode(piece, trusted=True) for piece in pieces]
        self.requests: list = []
        self.version = 4

    def generate(self, requests, sampling, on_token=None):
        return [self._one(request, sampling, on_token) for request in requests]

    def release(self, episodes):
        pass

    def _next(self, _request):
        return self.pieces[len(self.requests)]

    def _one(self, request, sampling, on_token):
        ids = self._next(request)[: request.max_new_tokens]
        self.requests.append(request)
        stopped = self.codec.decode(ids).endswith(sampling.stop)
        logprobs = tuple(-float(len(self.requests)) - i / 100 for i in range(len(ids)))
        for token, logprob in zip(ids, logprobs, strict=True) if on_token else ():
            on_token(request.episode, token, logprob)
        reason = "stop" if stopped else "length" if len(ids) == request.max_new_tokens else "eos"
        self.version -= 1
        return Generation(tuple(ids), logprobs, reason, self.version + 1)


class AsyncPieces(Pieces):
    """Says all the pieces to every episode."""

    def _next(self, request):
        return self.pieces[sum(earlier.episode == request.episode for earlier in self.requests)]

    async def generate_one(self, request, sampling, on_token=None):
        return self._one(request, sampling, on_token)


@pytest.fixture(scope="module")
def codec():
    return HFCodec(byte_level("deepseek", "deepseek_r1_distill"))


def driver(codec, policy, shelf, **settings):
    return RolloutDriver(policy, codec, make_environment(EnvironmentSettings(**settings), codec), shelf, 2)


def test_a_turn_goes_on_after_a_stop_string_inside_a_thought(codec):
    policy, shelf, events = Pieces(codec, MENTION, FOUND, ANSWER), Shelf(), []
    (played,) = driver(codec, policy, shelf).run([QUESTION], Sampling(1.0), on_event=events.append)
    assert shelf.asked == ["Norway"]
    assert [turn.action for turn in played.turns] == [Search("Norway"), Answer("Oslo")]
    assert [turn.text for turn in played.turns] == [MENTION + FOUND, ANSWER]
    assert [turn.thinking for turn in played.turns] == [True, False]
    assert [s.source for s in played.segments] == ["prompt", "policy", "environment", "policy"]
    # The turn's tokens and log-probs are those of its two generations, one after the other.
    first, second, third = policy.pieces
    said = played.turns[0].generation
    assert list(said.token_ids) == [*first, *second] == list(played.segments[1].token_ids)
    assert said.logprobs == played.segments[1].logprobs
    assert (said.logprobs[0], said.logprobs[len(first)], said.finish_reason) == (-1.0, -2.0, "stop")
    assert said.policy_version == 3  # of the older weights
    # What goes on has the tokens so far as its prefix, a seed of its own, and the rest of the budget.
    start, rest, _ = policy.requests
    assert list(rest.prefix) == [*start.prefix, *first]
    assert (start.max_new_tokens, rest.max_new_tokens) == (500, 500 - len(first))
    assert start.seed != rest.seed
    assert [request.thinking for request in policy.requests] == [True, True, False]
    assert [e.token_id for e in events if isinstance(e, TokenSampled)] == [*first, *second, *third]
    assert [i for i, e in enumerate(events) if isinstance(e, ThoughtOpen)] == [0]
    assert Format().score(QUESTION, played) == 1.0
    assert from_dict(to_dict(ScoredTrajectory(played, 1.0))).trajectory == played


def test_a_turns_budget_counts_all_that_was_sampled(codec):
    mention = codec.encode(MENTION, trusted=True)
    policy, shelf = Pieces(codec, MENTION, FOUND, SHORT), Shelf()
    budget = len(mention) + 3
    (played,) = driver(codec, policy, shelf, turn_tokens=budget).run([QUESTION], Sampling(1.0))
    cut = played.turns[0]
    assert len(cut.generation.token_ids) == budget
    assert cut.generation.finish_reason == "length"
    assert cut.action.reason == "the action stands inside a <think> that was not closed"
    assert cut.observation.startswith("\n</think>\n")
    assert not shelf.asked
    # A stop string that takes the last of the budget.
    (played,) = driver(codec, Pieces(codec, MENTION, SHORT), shelf, turn_tokens=len(mention)).run(
        [QUESTION], Sampling(1.0)
    )
    assert played.turns[0].generation.finish_reason == "length"


def test_episodes_whose_turns_are_over_wait_for_the_others(codec):
    """In one round: a mention in the second episode alone, and one call of the retriever for both."""

    class Counting(Shelf):
        calls = 0

        def search(self, queries, k):
            self.calls += 1
            return super().search(queries, k)

    pieces = ["</think> <search> Sweden </search>", MENTION, FOUND, ANSWER, ANSWER]
    policy, shelf = Pieces(codec, *pieces), Counting()
    played = driver(codec, policy, shelf).run([QUESTION, Question("r", "And of Sweden?", ())], Sampling(1.0))
    assert (shelf.asked, shelf.calls) == (["Sweden", "Norway"], 1)
    assert [t.turns[0].text for t in played] == ["</think> <search> Sweden </search>", MENTION + FOUND]
    assert [request.episode.partition("#")[0] for request in policy.requests] == ["q", "r", "r", "q", "r"]


def test_episodes_that_advance_each_on_its_own_go_on_too(codec):
    policy, shelf = AsyncPieces(codec, MENTION, FOUND, ANSWER), Shelf()
    played = driver(codec, policy, shelf).run([QUESTION, Question("r", "And of Sweden?", ())], Sampling(1.0))
    for trajectory in played:
        assert trajectory.stop == "answer"
        assert [turn.text for turn in trajectory.turns] == [MENTION + FOUND, ANSWER]


def test_an_environment_that_knows_of_no_thoughts_is_played_as_before(codec):
    class Plain:
        def __init__(self, inner):
            self.inner = inner
            self.stop_strings, self.total_tokens = inner.stop_strings, inner.total_tokens
            self.reset, self.step, self.observe = inner.reset, inner.step, inner.observe
            self.turn_tokens = inner.turn_tokens

    settings = EnvironmentSettings(chat="never")
    make = make_environment(settings, codec)
    policy, shelf = Pieces(codec, "<think>a</think><search> Norway </search>", ANSWER), Shelf()
    (played,) = RolloutDriver(policy, codec, lambda: Plain(make()), shelf, 2).run([QUESTION], Sampling(1.0))
    assert (played.stop, shelf.asked) == ("answer", ["Norway"])


def test_demonstrations_are_said_inside_the_thought_that_the_template_opened(codec):
    plan = Plan(QUESTION, (PlanStep("Find it.", "Norway", "Oslo"),), "Read it.", "Oslo")
    settings = EnvironmentSettings()
    (demonstration,) = play([Reciter(plan)], codec, make_environment(settings, codec), Shelf(), 2)
    played = demonstration.trajectory
    assert [turn.text for turn in played.turns] == [
        "Find it. </think>\n<search> Norway </search>",
        "<think> Read it. </think>\n<answer> Oslo </answer>",
    ]
    assert Format().score(QUESTION, played) == 1.0
    row = to_example(played, codec.eos_token_id)
    learned = [token for token in row["labels"] if token != -100]
    assert codec.decode(learned) == "".join(turn.text for turn in played.turns)


def test_a_script_that_ends_in_no_stop_string_is_framed(codec):
    said = ["prose</think>prose", "So.</think><answer> Oslo </answer>"]
    policy = ScriptedPolicy(codec, lambda _, turn: said[turn])
    (played,) = driver(codec, policy, Shelf()).run([QUESTION], Sampling(0.0))
    assert played.turns[0].observation.startswith("<｜end▁of▁sentence｜><｜User｜>That turn")
    assert [turn.thinking for turn in played.turns] == [True, True]
    assert played.answer == "Oslo"
