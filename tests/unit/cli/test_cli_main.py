"""The program: quick to say what it can do, and one clear line for what went wrong."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from rich.text import Text

from cli import main as program
from sleuth.errors import DataError

LIGHT = """
import sys
from cli.main import main
try:
    main([{arguments}])
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"torch", "transformers", "trl", "pyserini", "matplotlib", "datasets", "numpy"}} & set(sys.modules)
assert not heavy, heavy
"""


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        program.main(list(arguments))
    return int(end.value.code or 0)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes ``sleuth search`` raise what it is given."""

    def install(error: BaseException) -> None:
        def search(index: str) -> None:
            raise error

        fake = type(sys)("fake_command_module")
        fake.search = search  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "fake_command_module", fake)
        monkeypatch.setitem(program.COMMANDS, "search", "fake_command_module:search")

    return install


@pytest.mark.parametrize("arguments", ['"--help"', '"evaluate", "--help"', '"inspect", "--help"', '"train", "-h"'])
def test_help_is_quick_and_loads_nothing_heavy(arguments: str) -> None:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", LIGHT.format(arguments=arguments)], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert seconds < 5, "about 0.3 s on an idle machine"


def test_every_command_of_the_program_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for name in ("world", "demonstrate", "warmstart", "train", "evaluate", "index", "search", "inspect"):
        assert f" {name} " in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("sleuth 0.")


def test_a_mistyped_command_is_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("evalute") == 2
    assert "Did you mean 'evaluate'?" in capsys.readouterr().err


def test_what_a_user_can_mend_is_one_line_with_its_hint(failing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    failing(DataError("corpus.jsonl, line 3: [bold]no text[/]\nat all", "add one " + "x" * 200))
    assert run("search", "idx") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: corpus.jsonl, line 3: [bold]no text[/] at all (add one " + "x" * 200 + ")\n"


def test_a_file_that_cannot_be_written_is_one_line(failing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    failing(PermissionError(13, "Permission denied", "/root/x"))
    assert run("search", "idx") == 2
    assert capsys.readouterr().err == "error: Permission denied: /root/x\n"


@pytest.mark.parametrize("arguments", [("--debug", "search", "idx"), ("search", "idx", "--debug")])
def test_debug_lets_the_error_through(failing: Any, arguments: tuple[str, ...]) -> None:
    failing(DataError("broken"))
    with pytest.raises(DataError):
        program.main(list(arguments))


def test_help_shows_brackets_that_are_no_markup() -> None:
    def commands(command: Any) -> Iterator[Any]:
        yield command
        for below in getattr(command, "commands", {}).values():
            yield from commands(below)

    found = list(commands(typer.main.get_command(program.make_app())))
    helps = [text for command in found for part in (command, *command.params) if (text := getattr(part, "help", None))]
    assert len(helps) > 100
    for text in helps:
        assert Text.from_markup(text).plain == text.replace("\\[", "[")


def test_debug_after_two_dashes_is_a_word_like_others(failing: Any) -> None:
    failing(DataError("broken"))
    assert run("search", "--", "--debug") == 2


def test_a_bug_shows_its_traceback(failing: Any) -> None:
    failing(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        program.main(["search", "idx"])


def test_an_interrupt_ends_with_130(failing: Any, capsys: pytest.CaptureFixture[str]) -> None:
    failing(KeyboardInterrupt())
    assert run("search", "idx") == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_an_interrupt_inside_generated_code_ends_with_130_too() -> None:
    script = (
        "from cli import main as program\n"
        "import typer\n"
        "app = typer.Typer(cls=program._Program, callback=lambda: None)\n"
        "app.command('x')(lambda: exec('raise KeyboardInterrupt'))\n"
        "app(['x'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")
