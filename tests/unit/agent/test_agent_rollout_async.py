"""Episodes that advance each on their own give what rounds give; only the order of things in time differs."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace

import pytest

from agent.events import TurnTaken
from agent.policies.scripted import ScriptedPolicy
from agent.rollout import RolloutDriver
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from sleuth.errors import PolicyError, RetrieverError
from sleuth.protocols import AsyncPolicy
from sleuth.types import Hit, Passage, Question, Sampling

SEARCH, ANSWER = "<think> Need it </think> <search> {} </search>", "<answer> Paris </answer>"
SCRIPT = {
    "fast": [SEARCH.format("Paris"), ANSWER],
    "slow": [SEARCH.format("London"), ANSWER],
    "brief": [ANSWER],
    "endless": [SEARCH.format("Paris")] * 10,
}


class Shelf:
    fingerprint = "shelf"

    def __init__(self, fail_on: str = "") -> None:
        self.calls: list[list[str]] = []
        self._fail_on = fail_on

    def search(self, queries, k):
        self.calls.append(list(queries))
        if self._fail_on in queries:
            raise RetrieverError("down")
        return [[Hit(Passage(f"p{q}", q, "the city of Paris"), 1.0, 1)][:k] for q in queries]


class OneByOne(ScriptedPolicy):
    """A scripted policy with the asynchronous form; question ``slow`` waits for ``gate``."""

    gate: threading.Event | None = None
    cancelled = 0

    async def generate_one(self, request, sampling, on_token=None):
        try:
            while self.gate and request.episode.startswith("slow") and not self.gate.is_set():
                await asyncio.sleep(0.001)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if request.episode.startswith("broken"):
            raise PolicyError("the engine is gone")
        return self.generate([request], sampling, on_token)[0]


def make(tiny, kind, shelf):
    _, codec = tiny
    environment = EnvironmentSettings(preset="minimal", chat="never", turns=3, searches=2)
    policy = kind(codec, lambda question, turn: SCRIPT[question][turn])
    return RolloutDriver(policy, codec, make_environment(environment, codec), shelf, 2)


def ask(*ids):
    return [Question(i, "what is the capital ?", ("Paris",)) for i in ids]


def test_the_asynchronous_form_gives_the_same_trajectories(tiny):
    rounds = make(tiny, ScriptedPolicy, Shelf()).run(ask(*SCRIPT), Sampling())
    driver = make(tiny, OneByOne, Shelf())
    assert isinstance(driver.policy, AsyncPolicy)
    for _ in range(2):  # a driver outlives the event loop of a run
        each = driver.run(ask(*SCRIPT), Sampling())
        assert [replace(t, timings={}) for t in each] == [replace(t, timings={}) for t in rounds]


def test_a_finished_row_searches_and_answers_while_another_still_samples(tiny):
    driver = make(tiny, OneByOne, Shelf())
    gate = driver.policy.gate = threading.Event()
    order: list[str] = []

    def on_event(event):
        if isinstance(event, TurnTaken):
            order.append(event.episode.partition("#")[0])
            if order.count("fast") == 2:
                gate.set()

    played = driver.run(ask("slow", "fast"), Sampling(), on_event=on_event)
    assert order == ["fast", "fast", "slow", "slow"]
    assert [t.stop for t in played] == ["answer", "answer"]


def test_searches_that_coincide_share_a_call(tiny):
    shelf = Shelf()
    make(tiny, OneByOne, shelf).run(ask("fast", "slow", "endless"), Sampling())
    assert sorted(shelf.calls[0]) == ["London", "Paris"]


def test_timings_add_up_to_the_time_that_passed(tiny):
    driver = make(tiny, OneByOne, Shelf())
    played = driver.run(ask(*SCRIPT), Sampling())
    assert 0 < sum(sum(t.timings.values()) for t in played) < 30
    assert all(set(t.timings) == {"generate", "retrieve"} for t in played)


def test_a_failed_search_leaves_only_its_own_episodes_unscored(tiny):
    driver = make(tiny, OneByOne, Shelf(fail_on="London"))
    gate = driver.policy.gate = threading.Event()
    on_event = lambda event: gate.set() if isinstance(event, TurnTaken) and "fast" in event.episode else None
    slow, fast = driver.run(ask("slow", "fast"), Sampling(), on_event=on_event)
    assert slow.stop == "retriever_failed" and fast.stop == "answer"


def test_a_failing_policy_cancels_the_other_episodes_and_is_the_error_that_comes_out(tiny):
    driver = make(tiny, OneByOne, Shelf())
    driver.policy.gate = threading.Event()
    with pytest.raises(PolicyError, match="the engine is gone"):
        driver.run(ask("slow", "broken"), Sampling())
    assert driver.policy.cancelled == 1
