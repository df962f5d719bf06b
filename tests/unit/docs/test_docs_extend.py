"""The worked files of docs/extend.md do what their page says."""

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.learning.credit.config import CreditSettings
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from cli import main as program
from envs.config import EnvironmentSettings
from envs.tools import make_tools
from rewards.config import RewardSettings
from rewards.scorer import make_scorer
from sleuth.errors import ToolError
from sleuth.plugins import load_object
from sleuth.trajectories import read_trajectories
from sleuth.types import Answer, Generation, Hit, Passage, Question, Search, Segment, Trajectory, Turn
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
    """An evaluation in which a reward, a retriever and an environment of one's own take part."""
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


def test_the_judge_of_turns_is_a_reward_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    hits = {name: Hit(Passage(name, name, ""), 1.0, 1) for name in "abc"}
    found = (("a", "b"), ("b", "c"), (), ("a",))
    said = Generation((1,), (0.0,), "stop")
    turns = (
        *(Turn(said, "", Search("s"), tuple(hits[n] for n in names)) for names in found),
        Turn(said, "", Answer("x")),
    )
    segments = (Segment("prompt", (9,)), *(Segment("policy", (1,), (0.0,)) for _ in turns))
    trajectory = Trajectory(Question("q", "who?", ("me",)), segments, turns, "answer")
    credit = CreditSettings.of(kind="turns", score="news:News", weight=0.3).open()
    assert credit.scorer.score([trajectory]) == [(1.0, 0.5, 0.0, 0.0, None)]
    (part,) = make_scorer([RewardSettings.of(kind="news:News", weight=0.0)]).parts
    assert part.values([trajectory]) == [0.375]


def test_the_examples_work_together(played: Any) -> None:
    short, long = played
    assert short.parts == {"exact_match": 1.0, "Brevity": 1.0} and short.reward == pytest.approx(1.1)
    assert long.parts == {"exact_match": 0.0, "Brevity": 0.0}
    first, second = short.trajectory.searches
    assert [hit.passage.id for hit in first.hits] == ["f", "e"]
    assert "the capital of France is Paris" in first.observation
    assert "No passage was found" in second.observation, "what was shown before is not shown again"


@pytest.mark.parametrize(
    ("expression", "value"),
    [("1906 - 1828", "78"), ("(1906 - 1828) / 4", "19.5"), ("-2 / 3", "-0.67"), ("1906 * 1000 + 1", "1906001")],
)
def test_the_tool_computes(monkeypatch: pytest.MonkeyPatch, expression: str, value: str) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    named = {"kind": "arithmetic:Arithmetic", "options": {"digits": 2}}
    tools = make_tools(EnvironmentSettings(tools=["search", named]), None)
    assert tools["arithmetic"].call({"expression": expression}, []) == value


@pytest.mark.parametrize("expression", ["2 +", "2 ** 9", "Ibsen", "__import__('os')"])
def test_the_tool_says_what_it_does_not_compute(monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    tool = load_object("arithmetic:Arithmetic")()
    with pytest.raises(ToolError, match=r"this is no expression|only \+ - \* / and numbers"):
        tool.call({"expression": expression}, [])


@pytest.mark.parametrize("file", sorted(EXAMPLES.rglob("*.py")), ids=lambda file: file.name)
def test_an_example_stays_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 60
