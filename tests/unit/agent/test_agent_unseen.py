"""``environment.unseen``: no search of an episode finds again what it has shown, in whatever form it plays."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from qwen_like import qwen_codec

from agent import demonstrate
from agent.policies.scripted import ScriptedPolicy
from agent.rollout import RolloutDriver
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from envs.plans import Reciter
from sleuth.types import Hit, Passage, Plan, PlanStep, Question, Sampling, Trajectory

CODEC = qwen_codec()
ANSWER = "<think>So.</think>\n<answer>Paris</answer>"


class Ranked:
    """Passages ``a0`` … ``a9`` for the query a, and so on; the query aa finds the same as a."""

    fingerprint = "ranked"

    def __init__(self, count: int = 10) -> None:
        self.calls: list[tuple[list[str], int]] = []
        self.count = count

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        self.calls.append((list(queries), k))
        found = [[Passage(f"{q[0]}{n}", f"Title {n}", f"{q[0]} text {n}") for n in range(self.count)] for q in queries]
        return [[Hit(p, 9.0 - n, n + 1) for n, p in enumerate(row[:k])] for row in found]


class OneByOne(ScriptedPolicy):
    async def generate_one(self, request, sampling, on_token=None):
        return self.generate([request], sampling, on_token)[0]


def search(*queries: str, form: str = "tags") -> str:
    if form == "tags":
        return f"<think>Look.</think>\n<search>{queries[0]}</search>"
    calls = [json.dumps({"name": "search", "arguments": {"query": query}}) for query in queries]
    return "<think>Look.</think>\n" + "\n".join(f"<tool_call>\n{call}\n</tool_call>" for call in calls)


def play(said, shelf, form="tags", policy=ScriptedPolicy, top_k=2, **settings) -> list[Trajectory]:
    chosen = EnvironmentSettings(**{"protocol": form, "unseen": True, "top_k": top_k, "searches": 5, **settings})
    script = said if isinstance(said, dict) else {"q": said}
    made = policy(CODEC, lambda question, turn: script[question][turn], end_turns=form == "hermes")
    driver = RolloutDriver(made, CODEC, make_environment(chosen, CODEC), shelf, top_k)
    return driver.run([Question(name, "Where?", ("Paris",)) for name in script], Sampling(0.0))


def ids(played: Trajectory) -> list[list[str]]:
    return [[hit.passage.id for hit in turn.hits] for turn in played.turns[:-1]]


@pytest.mark.parametrize("form", ["tags", "hermes"])
def test_a_search_goes_on_where_the_last_one_ended(form):
    shelf = Ranked()
    said = [search("a", form=form), search("aa", form=form), search("a", form=form), ANSWER]
    (played,) = play(said, shelf, form)
    assert ids(played) == [["a0", "a1"], ["a2", "a3"], ["a4", "a5"]]
    assert [hit.rank for turn in played.turns for hit in turn.hits] == [1, 2, 1, 2, 1, 2]
    assert shelf.calls == [(["a"], 2), (["aa"], 4), (["a"], 6)]
    assert "a text 2" in played.turns[1].observation
    assert "a text 0" not in played.turns[1].observation
    (before,) = play(said, Ranked(), form, unseen=False)
    assert ids(before) == [["a0", "a1"]] * 3


def test_queries_of_one_turn_share_no_passage():
    shelf = Ranked()
    (played,) = play([search("a", "aa", form="hermes"), search("b", "a", form="hermes"), ANSWER], shelf, "hermes")
    assert ids(played) == [["a0", "a1", "a2", "a3"], ["b0", "b1", "a4", "a5"]]
    assert played.turns[1].hits_per_query == (2, 2)


def test_when_all_was_shown_nothing_is_found():
    (played,) = play([search("a"), search("a"), search("a"), ANSWER], Ranked(count=3))
    assert ids(played) == [["a0", "a1"], ["a2"], []]
    assert "No passage was found" in played.turns[2].observation


def test_what_had_no_room_may_be_found_again():
    (played,) = play([search("a"), search("a"), ANSWER], Ranked(), top_k=3, observation_tokens=60)
    assert ids(played)[0] == ["a0", "a1", "a2"]
    assert played.turns[0].observation.count("text") == 1, "the budget shows one"
    assert ids(played)[1] == ["a1", "a2", "a3"]


def test_episodes_neither_share_what_they_saw_nor_depend_on_each_other():
    script = {"x": [search("a"), search("a"), ANSWER], "y": [search("b"), search("a"), ANSWER], "z": [ANSWER]}
    shelf = Ranked()
    rounds = play(script, shelf)
    assert [ids(one) for one in rounds] == [[["a0", "a1"], ["a2", "a3"]], [["b0", "b1"], ["a0", "a1"]], []]
    assert shelf.calls == [(["a", "b"], 2), (["a"], 4)], "one call a round, as before"
    each = play(script, Ranked(), policy=OneByOne)
    assert [replace(one, timings={}) for one in each] == [replace(one, timings={}) for one in rounds]
    alone = [play({name: said}, Ranked())[0] for name, said in script.items()]
    assert [one.token_ids for one in alone] == [one.token_ids for one in rounds]


def test_demonstrations_are_played_so_too():
    steps = (PlanStep("One.", "a"), PlanStep("More.", "a"))
    plan = Plan(Question("q", "Where?", ("Paris",)), steps, "So.", "Paris")
    make = make_environment(EnvironmentSettings(unseen=True), CODEC)
    (played,) = demonstrate.play([Reciter(plan)], CODEC, make, Ranked(), 1)
    assert ids(played.trajectory) == [["a0"], ["a1"]]
