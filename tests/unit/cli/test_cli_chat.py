"""``sleuth chat`` as it is used: in a pipe, at a prompt, and stopped in the middle of an answer."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
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
from agent.tiny import build_tiny_policy, make_tokenizer
from agent.tiny_config import TinySettings
from cli import main as program
from cli.chat.command import parse_retriever, resolve
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
FAKES = '''
import time
from agent.policies.scripted import ScriptedPolicy
from sleuth.types import Hit, Passage


def backend(settings, codec):
    """Searches twice, then answers; a question about Rome is thought about for a minute."""
    policy = ScriptedPolicy(codec, lambda question, turn: TURNS[min(turn, 2)])
    generate = policy.generate

    def slow(requests, sampling, on_token=None):
        if "Rome" in codec.decode(requests[0].prefix):
            for _ in range(600):
                on_token(requests[0].episode, codec.encode("Need")[0], 0.0)
                time.sleep(0.1)
        return generate(requests, sampling, on_token)

    policy.generate = slow
    return policy


TURNS = [
    "<think>Need it</think><search>the capital</search>",
    "<think>Need the city</think><search>the city</search>",
    "<answer>Paris</answer>",
]


class Shelf:
    fingerprint = "shelf"

    def search(self, queries, k):
        return [[Hit(Passage("p", "France", "the capital of France is Paris"), 1.5, 1)] for _ in queries]
'''
OPTIONS = ["--set", "policy.backend=chat_fakes:backend", "--retriever", "{kind: 'chat_fakes:Shelf'}"]
OPTIONS += ["--preset", "minimal"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a policy and fakes to import."""
    folder = tmp_path_factory.mktemp("chat")
    build_tiny_policy(folder / "tiny", WORDS, TinySettings(hidden_size=32, layers=2), 0)
    (folder / "chat_fakes.py").write_text(FAKES, encoding="utf-8")
    row = {"id": "d1", "question": "what is the capital of France ?", "golden_answers": ["Paris"]}
    (folder / "q.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder


def environment_of(place: Path) -> dict[str, str]:
    path = os.pathsep.join([str(place), str(Path(__file__).parents[3])])
    return os.environ | {
        "PYTHONPATH": path, "SLEUTH_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1", "TERM": "xterm"
    }  # fmt: skip


def sleuth(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cli.main", "chat", *arguments]


@pytest.fixture(autouse=True)
def hears_interrupts() -> Iterator[None]:
    """Also where the tests run as a background job of a shell, which makes them deaf to interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


# In a pipe


def test_a_pipe_is_read_line_by_line(place: Path) -> None:
    lines = "what is the capital ?\n\n/load q.jsonl\n/topk 3\n/save kept.jsonl all\n"
    done = subprocess.run(
        sleuth("tiny", *OPTIONS), cwd=place, env=environment_of(place), input=lines, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        "standard input is no terminal: reading one question a line, plain text",
        "error: no command /topk (did you mean 'top-k'?)",
    ]
    told = done.stdout.splitlines()
    assert told[:8] == [
        "question  what is the capital ?",
        "   think  Need it",
        "  search  the capital",
        "          [1] #1    1.500  France  the capital of France is Paris",
        "   think  Need the city",
        "  search  the city",
        "          [2] #1    1.500  France  the capital of France is Paris",
        "  answer  Paris",
    ]
    assert "question  what is the capital of France ?  [d1]" in told
    assert "  graded  EM 1  F1 1   accepted: Paris" in told
    assert "\x1b" not in done.stdout + done.stderr
    assert [row.reward for row in read_trajectories(place / "kept.jsonl")] == [None, 1.0]


def test_json_is_one_object_a_question_and_nothing_else(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(sys, "stdin", io.StringIO("what ?\n/load q.jsonl\n"))
    with pytest.raises(SystemExit) as end:
        program.main(["chat", "tiny", *OPTIONS, "--json"])
    assert not end.value.code
    captured = capfd.readouterr()
    first, second = map(json.loads, captured.out.splitlines())
    assert (first["question"], first["answer"], "em" in first) == ("what ?", "Paris", False)
    assert [search["query"] for search in first["searches"]] == ["the capital", "the city"]
    assert (second["id"], second["em"], second["seed"]) == ("d1", 1.0, 1)
    assert "  answer  Paris" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny"], "mode search needs something to search"),
        (["tiny", "--retriever", "nowhere"], "sleuth index"),
        (["tiny", "--retriever", "{kind: bm26}"], "did you mean 'bm25'?"),
        (["tiny", "--retriever", "{kind"], "cannot read"),
        (["nowhere/at/all", "--mode", "direct"], "nowhere/at/all"),
        (["tiny", *OPTIONS, "--top-k", "0"], "top_k"),
        (["tiny", *OPTIONS, "--temperature", "-1"], "temperature is -1.0"),
    ],
)
def test_mistakes_are_one_line(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(sys, "stdin", io.StringIO("what ?\n"))
    with pytest.raises(SystemExit) as end:
        program.main(["chat", *arguments])
    assert end.value.code == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    (line,) = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_options_lie_over_the_run(place: Path) -> None:
    settings = resolve("tiny", [], "http://127.0.0.1:1", turns=2, top_k=7)
    assert (settings.environment.turns, settings.environment.searches, settings.environment.top_k) == (2, 1, 7)
    assert settings.retriever is not None
    assert settings.retriever.kind == "remote"
    assert str(parse_retriever("runs/{a}/index").index) == "runs/{a}/index"
    assert parse_retriever("{kind: bm25, index: a, b: 0.5}").b == 0.5


# At a prompt


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
    assert "Ctrl-D or /quit leaves" in stage.text


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
        "/help me": "/help takes nothing",
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


# At a real terminal


def test_at_a_terminal_an_answer_is_stopped_and_the_session_goes_on(place: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 100))
    answering = environment_of(place) | {"PROMPT_TOOLKIT_NO_CPR": "1"}  # nobody here says where the cursor is
    process = subprocess.Popen(
        sleuth("tiny", *OPTIONS), cwd=place, env=answering, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=_take_terminal,
    )  # fmt: skip
    os.close(theirs)
    told = seen = ""

    def until(words: str, seconds: float = 120.0) -> None:
        """Read on until ``words`` come after what was waited for before."""
        nonlocal told, seen
        end = time.monotonic() + seconds
        while words not in told[len(seen) :]:
            assert time.monotonic() < end, told[-2000:]
            if select.select([ours], [], [], 0.5)[0]:
                told += os.read(ours, 65536).decode("utf-8", "replace")
        seen = told[: told.index(words, len(seen)) + len(words)]

    try:
        until("ask a question")
        os.write(ours, b"Rome ?\r")
        until("Need")
        os.write(ours, b"\x03")
        until("stopped after 0 turns")
        os.write(ours, b"the city ?\r")
        until("2 searches")
        until("\x1b[?2004h")  # at the prompt again: before, the terminal itself would take the key
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    assert "^C" not in told


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell makes its background jobs deaf to it
