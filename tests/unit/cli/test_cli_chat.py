"""``sleuth chat`` as a process: in a pipe, and at a terminal, stopped in the middle of an answer."""

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
from pathlib import Path

import pytest

from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from cli import main as program
from sleuth.trajectories import read_trajectories
from workflows.model_settings import session_settings
from workflows.retrievers import retriever_settings

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
    build_tiny_policy(folder / "tiny", WORDS, TinySettings(hidden_size=32, layers=2, max_length=8192), 0)
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


# In a pipe


@pytest.mark.e2e
def test_a_pipe_is_read_line_by_line(place: Path) -> None:
    lines = "what is the capital ?\n\n/load q.jsonl\n/topk 3\n/save kept.jsonl all\n"
    done = subprocess.run(
        sleuth("tiny", *OPTIONS), cwd=place, env=environment_of(place), input=lines, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [
        "standard input is not a terminal: reading one question per line",
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
    settings = session_settings("tiny", [], "http://127.0.0.1:1", turns=2, top_k=7)
    assert (settings.environment.turns, settings.environment.searches, settings.environment.top_k) == (2, 1, 7)
    assert settings.retriever is not None
    assert settings.retriever.kind == "remote"
    assert str(retriever_settings("runs/{a}/index").index) == "runs/{a}/index"
    assert retriever_settings("{kind: bm25, index: a, b: 0.5}").b == 0.5


def test_a_retriever_may_be_a_yaml_file_as_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "hybrid.yaml").write_text("{kind: hybrid, parts: [a, b]}")
    chosen = session_settings("tiny", [], str(tmp_path / "hybrid.yaml")).retriever
    assert chosen is not None
    assert chosen == retriever_settings(str(tmp_path / "hybrid.yaml"))
    assert chosen.kind == "hybrid"


# At a terminal


@pytest.mark.e2e
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
