"""``sleuth chat`` at its prompt: keys, commands, and what wrong use is told."""

from __future__ import annotations

import io
import signal
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from agent.policies.scripted import ScriptedPolicy
from agent.session import Knobs, Session, Tools
from agent.tiny import make_tokenizer
from cli.chat.commands import COMMANDS, Chat
from cli.chat.loop import converse, handle, read_lines
from cli.chat.prompt import CommandCompleter, make_prompt
from cli.chat.view import View
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from rewards.text_match import exact_match, f1
from sleuth.errors import ConfigError, RetrieverError
from sleuth.settings import validate
from sleuth.trajectories import read_trajectories
from sleuth.types import Hit, Passage, Question

WORDS = ["capital", "of", "France", "is", "Paris", "London", "Rome", "the", "city", "?", "what", "Need", "it"]


class Shelf:
    def __init__(self, name: str) -> None:
        self.fingerprint = name

    def search(self, queries, k):
        if self.fingerprint == "down":
            raise RetrieverError("the shelf is empty")
        if self.fingerprint == "nowhere":
            raise ConfigError("no shelf nowhere")
        return [[Hit(Passage("p", self.fingerprint, "the city of Paris"), 1.0, 1)] for _ in queries]


TURNS = ("<think>Need it</think><search>the city</search>", "<search>it</search>", "<answer>Paris</answer>")


class Stage:
    """A chat with a scripted policy; what it wrote is in ``text``."""

    def __init__(self, on_generate=lambda: None) -> None:
        from agent.codec import HFCodec

        codec = HFCodec(make_tokenizer(WORDS, 256))
        policy = ScriptedPolicy(codec, lambda _question, turn: TURNS[turn])
        scripted = policy.generate

        def generate(requests, sampling, on_token=None):
            on_generate()
            return scripted(requests, sampling, on_token)

        policy.generate = generate  # type: ignore[method-assign]

        def environment(knobs: Knobs) -> Any:
            values = {"kind": knobs.mode, "top_k": knobs.top_k, "turns": knobs.turns, "searches": knobs.searches}
            return make_environment(
                validate(EnvironmentSettings, {**values, "preset": "minimal"}, "environment"), codec
            )

        def questions(name: str) -> list[Question]:
            return [Question("1", "what is it ?", ("Paris",)), Question("2", "city ?", ("Rome",))]

        tools = Tools(environment, Shelf, questions, {"em": exact_match, "f1": f1})
        self.console = Console(file=io.StringIO(), width=100, highlight=False)
        self.session = Session(policy, codec, tools, Knobs(), "shelf")
        self.chat = Chat(self.session, View(self.console, codec.decode), codec)

    @property
    def text(self) -> str:
        assert isinstance(self.console.file, io.StringIO)
        return self.console.file.getvalue()

    def type(self, keys: str, history: Path | None = None) -> None:
        with create_pipe_input() as keyboard, create_app_session(input=keyboard, output=DummyOutput()):
            keyboard.send_text(keys)
            converse(self.chat, make_prompt(COMMANDS, history, lambda: ""))


def test_enter_asks_and_ctrl_d_leaves() -> None:
    stage = Stage()
    stage.type("what is it ?\r\x04")
    assert [e.trajectory.answer for e in stage.session.history] == ["Paris"]
    assert "  answer  Paris\n" in stage.text


def test_alt_enter_and_a_backslash_begin_another_line(tmp_path: Path) -> None:
    stage = Stage()
    history = tmp_path / "chat" / "history"
    stage.type("what\x1b\ris\\\rit ?\r/quit\rnever\r", history)
    assert [e.trajectory.question.text for e in stage.session.history] == ["what\nis\nit ?"]
    assert history.stat().st_mode & 0o077 == 0
    again = Stage()
    again.type("\x1b[A\x1b[A\r\x04", history)  # up past /quit to the question
    assert [e.trajectory.question.text for e in again.session.history] == ["what\nis\nit ?"]


def test_ctrl_c_at_the_prompt_empties_the_line() -> None:
    stage = Stage()
    stage.type("city\x03what ?\r\x04")
    assert [e.trajectory.question.text for e in stage.session.history] == ["what ?"]
    assert "press Ctrl-D or type /quit to quit" in stage.text


def test_ctrl_c_stops_an_answer_and_keeps_the_session() -> None:
    calls = iter([False, True, False, False, False])
    stage = Stage(lambda: signal.raise_signal(signal.SIGINT) if next(calls) else None)
    stage.type("what ?\r/again\r\x04")
    assert "stopped after 1 turns" in stage.text
    (only,) = stage.session.history
    assert (only.trajectory.question.text, only.trajectory.answer) == ("what ?", "Paris")


def test_wrong_use_is_one_line_and_keeps_the_session(capfd: pytest.CaptureFixture[str]) -> None:
    stage = Stage()
    wrong = {
        "/mask": "no question was answered yet",
        "/serch": "did you mean 'searches'?",
        "/top-k": "",
        "/top-k many": "'many' is not a whole number",
        "/temperature hot": "'hot' is not a number",
        "/turns 0": "turns",
        "/mode serch": "did you mean 'search'?",
        "/passage": "/passage N",
        "/passage 1": "no question was answered yet",
        "/grade": "no answer is given",
        "/save": "/save FILE.jsonl",
        "/save a b": "/save FILE.jsonl",
        '/load "a': "close the quote",
        "/load a 9": "1 to 2",
        "/again": "nothing was asked yet",
        "/help me": "/help takes no argument",
    }
    stage.type("".join(f"{line}\r" for line in wrong) + "\x04")
    lines = capfd.readouterr().err.splitlines()
    expected = {line: words for line, words in wrong.items() if line != "/top-k"}
    assert len(lines) == len(expected)
    for line, (command, words) in zip(lines, expected.items(), strict=True):
        assert line.startswith("error: "), command
        assert words in line
    assert stage.session.knobs == Knobs()


def test_commands_do_what_they_say(tmp_path: Path) -> None:
    stage = Stage()
    lines = ["/top-k 2", "/temperature 0.5", "/turns 4", "/searches 2", "/seed 9", "/load set", "/load", "/load 1"]
    lines += ["/grade Rome | Paris", "/retriever other", "/again", "/again third", "/passage 2", "/mask", "/tokens"]
    lines += [f"/save {tmp_path / 'a b.jsonl'}".replace(" b", "\\ b"), "/mode direct", "/help", " /city ?"]
    for line in lines:
        handle(stage.chat, line)
    knobs = stage.session.knobs
    assert (knobs.top_k, knobs.temperature, knobs.turns, knobs.searches) == (2, 0.5, 4, 2)
    assert (knobs.mode, knobs.seed) == ("direct", 13)
    history = stage.session.history
    assert [e.trajectory.question.id for e in history[:-1]] == ["1", "2", "1", "1", "1"]
    assert [e.grades["em"] for e in history[:-1]] == [1.0, 0.0, 1.0, 1.0, 1.0]
    assert [e.retriever for e in history] == ["shelf", "shelf", "shelf", "other", "third", None]
    assert history[-1].trajectory.question.text == "/city ?"
    text = stage.text
    assert "graded  EM 1  F1 1   accepted: Rome | Paris" in text
    assert "[2] third" in text
    assert "tokens are trained on" in text
    assert "log-prob  text" in text
    assert all(command.usage in text for command in COMMANDS.values())
    assert next(iter(read_trajectories(tmp_path / "a b.jsonl"))).reward == 1.0


def test_a_retriever_that_fails_or_refuses_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    stage = Stage()
    assert read_lines(stage.chat, ["/retriever down\n", "what ?\n"], json=False) == 3
    assert "the retriever failed: the shelf is empty" in stage.text
    assert read_lines(stage.chat, ["/retriever nowhere\n", "what ?\n", "/quit\n", "/nothing\n"], json=False) == 2
    assert capfd.readouterr().err == "error: no shelf nowhere\n"
    assert stage.text.endswith("search  the city\n")  # the error does not continue the line


def test_completion_knows_commands_modes_and_paths(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    completer = CommandCompleter(COMMANDS)

    def after(text: str) -> list[str]:
        return [c.text for c in completer.get_completions(Document(text), CompleteEvent())]

    assert after("/to") == ["top-k", "tokens"]
    assert after("/mode d") == ["direct"]
    assert after(f"/retriever {tmp_path}/ind") == ["ex"]
    assert after(f"/save {tmp_path}/ind") == ["ex"]
    assert after("what /to") == after("/tokens x") == after("/nothing x") == []
