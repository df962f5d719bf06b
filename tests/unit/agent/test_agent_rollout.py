"""The driver: one deduplicated call a round, tokens appended once, failures are not zeros."""

from __future__ import annotations

from agent.events import EpisodeEnded, TokenSampled, TurnTaken
from agent.policies.scripted import ScriptedPolicy
from agent.rollout import RolloutDriver
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from sleuth.errors import RetrieverError
from sleuth.trajectories import from_dict, to_dict
from sleuth.types import Hit, Passage, Question, Sampling, ScoredTrajectory

GREEDY = Sampling(0.0)


class Shelf:
    """A retriever that remembers how it was asked."""

    fingerprint = "shelf"

    def __init__(self, fail_on: str = "") -> None:
        self.calls: list[list[str]] = []
        self._fail_on = fail_on

    def search(self, queries, k):
        self.calls.append(list(queries))
        if self._fail_on in queries:
            raise RetrieverError("down")
        return [[Hit(Passage(f"p{q}", q, "the city of Paris"), 1.0, 1)][:k] for q in queries]


def make(tiny, script, shelf, **settings):
    _, codec = tiny
    environment = EnvironmentSettings(preset="minimal", chat="never", **settings)
    policy = ScriptedPolicy(codec, lambda question, turn: script[question][turn])
    return RolloutDriver(policy, codec, make_environment(environment, codec), shelf, 2)


def ask(*ids):
    return [Question(i, "what is the capital ?", ("Paris",)) for i in ids]


SEARCH, ANSWER = "<think> Need it </think> <search> {} </search>", "<answer> Paris </answer>"


def test_a_round_makes_one_deduplicated_call(tiny):
    shelf = Shelf()
    script = {"a": [SEARCH.format("Paris"), ANSWER], "b": [SEARCH.format("Paris"), ANSWER], "c": [ANSWER]}
    played = make(tiny, script, shelf).run(ask("a", "b", "c"), GREEDY)
    assert shelf.calls == [["Paris"]]
    assert [t.stop for t in played] == ["answer"] * 3
    assert [len(t.searches) for t in played] == [1, 1, 0]
    assert played[0].hits[0].passage.title == "Paris"


def test_a_passage_returned_twice_is_shown_once_with_its_better_score(tiny):
    city, river = Passage("p1", "Paris", "the city of Paris"), Passage("p2", "Seine", "a river in France")

    class Twice(Shelf):
        def search(self, queries, k):
            return [[Hit(city, 0.5, 1), Hit(river, 0.7, 2), Hit(city, 0.9, 3)] for _ in queries]

    (played,) = make(tiny, {"a": [SEARCH.format("Paris"), ANSWER]}, Twice()).run(ask("a"), GREEDY)
    assert played.turns[0].hits == (Hit(city, 0.9, 1), Hit(river, 0.7, 2))
    assert played.turns[0].observation.count("the city of Paris") == 1


def test_segments_hold_exactly_what_was_sampled_and_inserted(tiny):
    _, codec = tiny
    script = {"a": [SEARCH.format("London"), ANSWER]}
    (played,) = make(tiny, script, Shelf()).run(ask("a"), GREEDY)
    sources = [s.source for s in played.segments]
    assert sources == ["prompt", "policy", "environment", "policy"]
    assert [list(s.token_ids) for s in played.segments if s.source == "policy"] == [
        codec.encode(text, trusted=True) for text in script["a"]
    ]
    sampled = sum(len(turn.generation.token_ids) for turn in played.turns)
    assert sum(played.policy_mask) == sampled
    assert len(played.policy_mask) == len(played.token_ids)


def test_a_failing_retriever_leaves_its_episodes_unscored(tiny):
    script = {"a": [SEARCH.format("London"), ANSWER], "b": [ANSWER]}
    a, b = make(tiny, script, Shelf(fail_on="London")).run(ask("a", "b"), GREEDY)
    assert a.stop == "retriever_failed" and not a.scorable
    assert b.stop == "answer" and b.scorable


def test_budgets_end_an_episode(tiny):
    endless = {"a": [SEARCH.format("Paris")] * 10}
    (played,) = make(tiny, endless, Shelf(), turns=3, searches=2).run(ask("a"), GREEDY)
    assert played.stop == "turn_budget" and len(played.turns) == 3 and len(played.hits) == 2
    (short,) = make(tiny, endless, Shelf(), total_tokens=40, turn_tokens=16, observation_tokens=20).run(
        ask("a"), GREEDY
    )
    assert short.stop == "token_budget" and len(short.token_ids) <= 40


def test_a_prompt_that_leaves_no_room_is_not_cut(tiny):
    driver = make(tiny, {"a": [ANSWER]}, Shelf(), total_tokens=6, turn_tokens=5, observation_tokens=5)
    (played,) = driver.run(ask("a"), GREEDY)
    assert played.stop == "prompt_too_long" and not played.turns
    assert len(played.segments[0].token_ids) >= 6


def test_passages_given_with_the_question_count_as_found(tiny):
    shelf = Shelf()
    (played,) = make(tiny, {"a": [ANSWER]}, shelf, kind="rag").run(ask("a"), GREEDY)
    assert shelf.calls == [["what is the capital ?"]]
    assert [h.passage.id for h in played.given] == [h.passage.id for h in played.hits] == ["pwhat is the capital ?"]
    assert from_dict(to_dict(ScoredTrajectory(played, 1.0))).trajectory == played


def test_events_tell_the_episode_as_it_happens(tiny):
    events = []
    driver = make(tiny, {"a": [SEARCH.format("Paris"), ANSWER]}, Shelf())
    (played,) = driver.run(ask("a"), GREEDY, on_event=events.append)
    tokens = [e.token_id for e in events if isinstance(e, TokenSampled)]
    assert tokens == [t for s in played.segments if s.source == "policy" for t in s.token_ids]
    assert [e.turn for e in events if isinstance(e, TurnTaken)] == list(played.turns)
    assert isinstance(events[-1], EpisodeEnded) and events[-1].trajectory == played
