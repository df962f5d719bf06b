"""A session: knobs that fit together, questions that end, fail or are interrupted, and what is kept of them."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from agent.events import PassagesGiven, TokenSampled
from agent.policies.scripted import ScriptedPolicy
from agent.policies.transformers_policy import TransformersPolicy
from agent.session import Knobs, Session, Tools
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from envs.search_env import SearchEnvironment
from rewards.text_match import exact_match, f1
from sleuth.errors import ArtifactError, ConfigError, DataError, PolicyError, RetrieverError
from sleuth.settings import validate
from sleuth.trajectories import read_trajectories
from sleuth.types import Answer, Hit, Passage, Question, Search

SEARCH, ANSWER = "<think> Need it </think> <search> city </search>", "<answer> Paris </answer>"
QUESTIONS = [Question("7", "what is it ?", ("Paris",)), Question("b", "who ?", ("London", "the city"), kind="two")]


class Shelf:
    """Two passages for every query, titled by the shelf's name; ``down`` fails instead."""

    def __init__(self, name: str) -> None:
        self.fingerprint = name
        self.calls: list[list[str]] = []

    def search(self, queries, k):
        self.calls.append(list(queries))
        if self.fingerprint == "down":
            raise RetrieverError("the shelf is empty", "fill it")
        return [[Hit(Passage(f"p{i}", self.fingerprint, f"the city {i}"), 2.0 - i, i) for i in (1, 2)][:k]] * len(
            queries
        )


class Bench:
    """Everything around a session, within reach of a test."""

    def __init__(self, codec, policy=None, turns=(SEARCH, SEARCH, ANSWER), knobs=None, retriever="a", source=None):
        self.shelves: dict[str, Shelf] = {}
        policy = policy or ScriptedPolicy(codec, lambda _question, turn: turns[turn])
        self.boxes: list[tuple[str, str | None]] = []
        graders = {"em": exact_match, "f1": f1}
        tools = Tools(lambda k: self.environment(k, codec), self.open, self.read, graders, self.box)
        self.session = Session(policy, codec, tools, knobs or Knobs(), retriever, source)

    def environment(self, knobs, codec):
        values = {"kind": knobs.mode, "top_k": knobs.top_k, "turns": knobs.turns, "searches": knobs.searches}
        settings = validate(EnvironmentSettings, values | {"preset": "minimal", "chat": "never"}, "environment")
        return make_environment(settings, codec)

    def open(self, name):
        if name == "nowhere":
            raise ArtifactError("no index at nowhere", "make it")
        return self.shelves.setdefault(name, Shelf(name))

    def box(self, knobs, retriever):
        self.boxes.append((knobs.mode, retriever.fingerprint if retriever else None))

    def read(self, name):
        if name == "none":
            raise DataError("no file none")
        return QUESTIONS


@pytest.fixture
def codec(tiny):
    return tiny[1]


@pytest.fixture
def bench(codec):
    return Bench(codec)


class Interrupting:
    """Says some tokens and is interrupted; ``late`` says one more afterwards, as a thread of a client would."""

    trainable = True
    version = 0

    def __init__(self, codec):
        self._tokens = codec.encode(SEARCH, trusted=True)
        self.released: list[str] = []
        self.late = lambda: None

    def generate(self, requests, sampling, on_token=None):
        (request,) = requests
        on_token(request.episode, self._tokens[0], 0.0)
        self.late = lambda: on_token(request.episode, self._tokens[1], 0.0)
        raise KeyboardInterrupt

    def release(self, episodes):
        self.released += episodes


# Questions


def test_a_question_is_searched_and_answered(bench):
    events = []
    exchange = bench.session.ask("  what is the capital of France ? ", events.append)
    trajectory = exchange.trajectory
    assert trajectory.question.text == "what is the capital of France ?"
    assert [type(turn.action) for turn in trajectory.turns] == [Search, Search, Answer]
    assert (trajectory.answer, exchange.retriever, exchange.grades) == ("Paris", "a", {})
    assert bench.session.last is exchange
    sampled = [event.token_id for event in events if isinstance(event, TokenSampled)]
    assert len(sampled) == sum(trajectory.policy_mask)


def test_seeds_go_up_and_again_keeps_the_seed(tiny):
    model, codec = tiny
    bench = Bench(codec, TransformersPolicy(model, codec), knobs=Knobs(temperature=1.0, turns=2, searches=1, seed=5))
    first = bench.session.ask("what is it ?").trajectory
    before, same = bench.session.again()
    assert before is not None
    assert before.trajectory == first
    assert same.trajectory.token_ids == first.token_ids
    second = bench.session.ask("what is it ?")
    assert (same.knobs.seed, second.knobs.seed) == (5, 6)
    assert second.trajectory.token_ids != first.token_ids
    bench.session.change(seed=5)
    assert bench.session.ask("what is it ?").trajectory.token_ids == first.token_ids


def test_an_interrupt_keeps_the_session_and_nothing_late_is_shown(codec):
    policy = Interrupting(codec)
    bench = Bench(codec, policy)
    events = []
    with pytest.raises(KeyboardInterrupt):
        bench.session.ask("what ?", events.append)
    assert len(events) == 1
    thread = threading.Thread(target=policy.late)
    thread.start()
    thread.join()
    assert len(events) == 1
    assert policy.released
    assert bench.session.history == []
    with pytest.raises(ConfigError, match="no question was answered yet"):
        bench.session.last  # noqa: B018 - reading it raises
    bench.session._policy = ScriptedPolicy(codec, lambda _question, turn: [SEARCH, ANSWER][turn])
    before, now = bench.session.again()
    assert before is None
    assert (now.trajectory.question.text, now.trajectory.answer, now.knobs.seed) == ("what ?", "Paris", 0)


def test_a_failing_retriever_is_told_and_not_graded(codec):
    bench = Bench(codec, retriever="down")
    exchange = bench.session.put(QUESTIONS[0])
    assert exchange.trajectory.stop == "retriever_failed"
    assert exchange.failure == "the shelf is empty (fill it)"
    assert exchange.grades == {}
    assert exchange.scored.reward is None


def test_a_failing_environment_is_told_and_not_graded(codec, monkeypatch):
    bench = Bench(codec)
    monkeypatch.setattr(SearchEnvironment, "step", lambda self, text: {}["state"])
    exchange = bench.session.put(QUESTIONS[0])
    assert exchange.trajectory.stop == "environment_failed"
    assert (exchange.failure, exchange.grades, exchange.scored.reward) == ("KeyError: 'state'", {}, None)
    monkeypatch.undo()
    assert bench.session.again()[1].grades["em"] == 1.0


def test_a_policy_that_fails_leaves_the_session_as_it_was(codec):
    bench = Bench(codec, turns=("",))
    with pytest.raises(PolicyError):
        bench.session.ask("what ?")
    assert bench.session.history == []
    with pytest.raises(DataError, match="empty"):
        bench.session.ask("  ")


# Knobs


def test_knobs_are_refused_as_a_whole(bench):
    for wrong in ({"top_k": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"mode": "serch"}, {"turns": 0}):
        with pytest.raises(ConfigError):
            bench.session.change(**wrong)
    with pytest.raises(ConfigError, match=r"turns \(6\) must be above searches \(6\)"):
        bench.session.change(searches=6)
    assert bench.session.knobs == Knobs()
    assert bench.session.change(top_k=1) == replace(Knobs(), top_k=1)
    assert len(bench.session.ask("what ?").trajectory.hits) == 2


def test_fewer_turns_leave_fewer_searches(bench):
    assert bench.session.change(turns=2) == replace(Knobs(), turns=2, searches=1)
    assert bench.session.ask("what ?").trajectory.stop == "turn_budget"
    bench.session.change(mode="direct", turns=1)
    assert not bench.session.ask("what ?").trajectory.hits


def test_a_mode_that_searches_needs_a_retriever(codec):
    bench = Bench(codec, retriever=None, knobs=Knobs(mode="direct"), turns=[ANSWER])
    assert bench.session.ask("what ?").retriever is None
    bench.session.change(mode="rag")
    with pytest.raises(ConfigError, match="mode rag needs something to search"):
        bench.session.ask("what ?")
    bench.session.use_retriever("a")
    events = []
    given = bench.session.ask("what ?", events.append).trajectory.given
    assert [hit.passage.title for hit in given] == ["a", "a"]
    assert isinstance(events[0], PassagesGiven)
    assert events[0].hits == given


def test_a_retriever_is_opened_once_and_only_where_it_is_searched(codec):
    bench = Bench(codec, knobs=Knobs(mode="direct"))
    assert bench.shelves == {}
    with pytest.raises(ArtifactError):
        bench.session.use_retriever("nowhere")
    assert bench.session.retriever == "a"
    with pytest.raises(ArtifactError):
        Bench(codec, retriever="nowhere")


def test_again_searches_another_retriever_this_time_only(bench):
    with pytest.raises(ConfigError, match="nothing was asked yet"):
        bench.session.again("b")
    first = bench.session.ask("what ?")
    with pytest.raises(ArtifactError):
        bench.session.again("nowhere")
    before, now = bench.session.again("b")
    assert before is first
    assert {hit.passage.title for hit in now.trajectory.hits} == {"b"}
    assert (now.retriever, bench.session.retriever) == ("b", "a")
    assert bench.session.history == [first, now]


# The last answer


def test_passages_are_counted_over_all_searches(bench):
    with pytest.raises(ConfigError, match="no question was answered yet"):
        bench.session.passage(1)
    bench.session.ask("what ?")
    assert [bench.session.passage(n).rank for n in (1, 2, 3, 4)] == [1, 2, 1, 2]
    for wrong in (0, 5):
        with pytest.raises(ConfigError, match="1 to 4"):
            bench.session.passage(wrong)


def test_grades_follow_the_answers_given(bench):
    bench.session.ask("what ?")
    assert bench.session.grade(["London"]).grades == {"em": 0.0, "f1": 0.0}
    graded = bench.session.grade([" ", "the Paris ", "London"])
    assert graded.grades == {"em": 1.0, "f1": 1.0}
    assert graded.trajectory.question.answers == ("the Paris", "London")
    before, now = bench.session.again("b")
    assert before == graded
    assert now.grades == {"em": 1.0, "f1": 1.0}
    with pytest.raises(ConfigError, match="no answer is given"):
        bench.session.grade([" "])


def test_questions_of_a_data_set_by_place_by_id_and_in_turn(codec):
    bench = Bench(codec, source="set")
    session = bench.session
    assert [session.load().id, session.load().id] == ["7", "b"]
    with pytest.raises(DataError, match="no question after its 2"):
        session.load()
    assert session.load("set", "2") == QUESTIONS[1]
    assert session.load(None, "7") == QUESTIONS[0]
    assert session.load() == QUESTIONS[1]
    for wrong, words in (("3", "1 to 2"), ("x", "ids are like '7'"), ("0", "1 to 2")):
        with pytest.raises(DataError, match=words):
            session.load("set", wrong)
    with pytest.raises(DataError, match="no file none"):
        session.load("none")
    assert session.put(session.load("set", "1")).grades == {"em": 1.0, "f1": 1.0}
    with pytest.raises(ConfigError, match="no data set is named"):
        Bench(codec).session.load()


def test_what_is_saved_is_read_back(bench, tmp_path):
    out = tmp_path / "kept.jsonl"
    with pytest.raises(ConfigError, match="no question was answered yet"):
        bench.session.save(out)
    bench.session.ask("what ?")
    bench.session.put(QUESTIONS[0])
    assert bench.session.save(out) == 1
    assert bench.session.save(out, everything=True) == 2
    kept = list(read_trajectories(out))
    assert [row.trajectory for row in kept] == [bench.session.history[i].trajectory for i in (1, 0, 1)]
    assert [row.reward for row in kept] == [1.0, None, 1.0]
    assert kept[0].parts == {"em": 1.0, "f1": 1.0}


def test_no_file_of_something_else_is_appended_to(bench, tmp_path):
    bench.session.ask("what ?")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"id": "1", "text": "no newline yet"}')
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 1"):
        bench.session.save(corpus)
    assert corpus.read_text() == '{"id": "1", "text": "no newline yet"}'
    with pytest.raises(ConfigError, match=r"no \.jsonl file"):
        bench.session.save(tmp_path / "a.parquet")


def test_tools_are_made_once_for_a_mode_and_a_retriever(bench):
    for _ in range(2):
        bench.session.ask("what?")
        bench.session.again("b")
    bench.session.change(mode="direct")
    bench.session.ask("what?")
    assert bench.boxes == [("search", "a"), ("search", "b"), ("direct", None)]
