"""The worked files of docs/extend.md do what their page says."""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from agent.tools import ToolBox
from cli import main as program
from envs.config import EnvironmentSettings
from envs.protocols.base import open_protocol
from envs.tools import make_tools, time_limits
from rewards.scorer import make_scorer
from sleuth.trajectories import read_trajectories
from sleuth.types import Answer, Call, Generation, Question, Segment, Trajectory, Turn
from workflows.config import load_run_settings

EXAMPLES = Path(__file__).parents[3] / "docs" / "examples"
BACKEND = """
from agent.policies.scripted import ScriptedPolicy

TURNS = ["<search>capital France</search>", "<search>France capital</search>", "<answer>{}</answer>"]


def make(settings, codec):
    answers = {"1": "Paris", "2": "the capital is Paris"}
    return ScriptedPolicy(codec, lambda question, turn: TURNS[turn].format(answers[question]))
"""


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An evaluation in which all three examples take part."""
    (tmp_path / "scripted_backend.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scripted_backend", raising=False)
    monkeypatch.chdir(tmp_path)
    with sqlite3.connect("passages.db") as database:
        database.execute("CREATE VIRTUAL TABLE passages USING fts5(id UNINDEXED, title, text)")
        rows = [("f", "France", "the capital of France is Paris"), ("e", "England", "the capital is London")]
        database.executemany("INSERT INTO passages VALUES (?, ?, ?)", rows)
    questions = [{"id": i, "question": "capital of France?", "golden_answers": ["Paris"]} for i in ("1", "2")]
    Path("q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    words = ["the", "capital", "of", "France", "is", "Paris", "London", "?", "England", "1", "2", "[", "]"]
    build_tiny_policy(tmp_path / "tiny", words, TinySettings(hidden_size=32, layers=2), 0)
    settings = {
        "policy.backend": "scripted_backend:make",
        "environment.kind": "fresh_environment:FreshPassages",
        "retriever": {"kind": "sqlite_retriever:SqliteRetriever", "options": {"file": "passages.db"}},
        "rewards": [{"kind": "exact_match"}, {"kind": "brevity:Brevity", "weight": 0.1, "options": {"words": 3}}],
    }
    sets = [
        word
        for key, value in settings.items()
        for word in ("--set", f"{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}")
    ]
    with pytest.raises(SystemExit) as end:
        program.main(["evaluate", "tiny", "--data", "q.jsonl", "--preset", "sleuth", "--out", "ev", *sets])
    assert not end.value.code
    return list(read_trajectories("ev/trajectories.jsonl"))


def test_the_config_of_the_reward_gives_it_its_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    scorer = make_scorer(load_run_settings(EXAMPLES / "brevity.yaml").rewards)
    parts = {part.name: (part.weight, part.reward) for part in scorer.parts}
    weight, reward = parts["Brevity"]
    assert parts.keys() == {"exact_match", "Brevity"} and weight == 0.1
    question = Question("q", "who?", ("me",))
    for answer, value in ((None, None), ("the man in black", 0.0), ("a man", 1.0)):
        turns = () if answer is None else (Turn(Generation((1,), (0.0,), "stop"), answer, Answer(answer)),)
        segments = (Segment("prompt", (9,)), *(Segment("policy", (1,), (0.0,)) for _ in turns))
        assert reward.score(question, Trajectory(question, segments, turns, "answer" if turns else "turns")) == value


def test_the_examples_work_together(played: Any) -> None:
    short, long = played
    assert short.parts == {"exact_match": 1.0, "Brevity": 1.0} and short.reward == pytest.approx(1.1)
    assert long.parts == {"exact_match": 0.0, "Brevity": 0.0}
    first, second = short.trajectory.searches
    assert [hit.passage.id for hit in first.hits] == ["f", "e"]
    assert "the capital of France is Paris" in first.observation
    assert "No passage was found" in second.observation, "what was shown before is not shown again"


def test_the_tool_of_the_page_computes_and_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    made = EnvironmentSettings(tools=["search", {"kind": "arithmetic:Arithmetic", "options": {"digits": 2}}])
    box = ToolBox(make_tools(made, None), time_limits(made))
    asked = ["(1906 - 1828) / 2", "1/3", "2 ** 9", "__import__('os')", "1 +", "1 / 0"]
    answers = box.call([(Call("arithmetic", {"expression": text}), ()) for text in asked])
    assert [answer.text for answer in answers] == [
        "39",
        "0.33",
        "arithmetic failed: only + - * / and numbers are understood",
        "arithmetic failed: only + - * / and numbers are understood",
        "arithmetic failed: this is no expression",
        "arithmetic failed: ZeroDivisionError: float division by zero",
    ]
    for protocol, turn in (
        ("tags", "<think>t</think><arithmetic> 1906 - 1828 </arithmetic>"),
        ("hermes", '<tool_call>{"name": "arithmetic", "arguments": {"expression": "1906 - 1828"}}</tool_call>'),
    ):
        read = open_protocol(made.model_copy(update={"protocol": protocol})).parse(turn, False)
        assert read == Call("arithmetic", {"expression": "1906 - 1828"})


@pytest.mark.parametrize("name", ["brevity.py", "sqlite_retriever.py", "fresh_environment.py", "arithmetic.py"])
def test_an_example_stays_short(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 50
