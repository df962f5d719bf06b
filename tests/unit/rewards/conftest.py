"""Trajectories made by hand."""

import json

import pytest

from sleuth.types import Answer, Call, Generation, Hit, Invalid, Passage, Question, Search, Segment, Trajectory, Turn


def make_turn(action, hits=(), text=None, observation=""):
    """A turn with a well-formed text unless ``text`` is given; ``hits`` are (title, text) pairs."""
    if text is None:
        text = {
            Search: lambda: f"<think>hm</think>\n<search>{action.query}</search>",
            Call: lambda: f"<think>hm</think>\n<{action.tool}>{json.dumps(action.arguments)}</{action.tool}>",
            Answer: lambda: f"<think>hm</think>\n<answer>{action.text}</answer>",
            Invalid: lambda: "prose",
        }[type(action)]()
    found = tuple(Hit(Passage(f"p{i}", title, body), 1.0, i) for i, (title, body) in enumerate(hits, start=1))
    return Turn(Generation((1, 2, 3), (0.0,) * 3, "stop"), text, action, found, observation)


def make_trajectory(question, *turns, stop="answer"):
    segments = [Segment("prompt", (9, 9))]
    for turn in turns:
        segments.append(Segment("policy", turn.generation.token_ids, turn.generation.logprobs))
        segments.append(Segment("environment", (7, 7, 7, 7)))
    return Trajectory(question, tuple(segments), turns, stop)


@pytest.fixture
def question():
    return Question(
        "q", "Where was the author of Peer Gynt born?", ("Skien", "Skien, Norway"), ("Peer Gynt", "Henrik Ibsen")
    )


@pytest.fixture
def turn():
    return make_turn


@pytest.fixture
def trajectory(question):
    return lambda *turns, **values: make_trajectory(values.pop("question", question), *turns, **values)
