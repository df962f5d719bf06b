"""The two kinds of session: interactive at a terminal, or line by line in a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from agent.session import Exchange
from cli.chat.commands import Chat, run_command
from cli.chat.view import as_json
from cli.console import error_console, print_error, print_json
from sleuth.errors import SleuthError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

FAULTY = 2
"""Exit status of a pipe in which a line could not be processed."""
UNANSWERED = 3
"""Exit status of a pipe in which the retriever or the environment failed on a question."""


def converse(chat: Chat, prompt: PromptSession[str]) -> None:
    """Ask and answer until Ctrl-D. Ctrl-C at the prompt clears the line; during an answer it stops the answer."""
    going = True
    while going:
        with contextlib.suppress(KeyboardInterrupt):  # pressed twice: the first press has already stopped the answer
            going = _exchange(chat, prompt)


def _exchange(chat: Chat, prompt: PromptSession[str]) -> bool:
    """Read and process one line; False when the user quits."""
    try:
        line = prompt.prompt()
    except KeyboardInterrupt:
        chat.view.line("press Ctrl-D or type /quit to quit", "dim")
        return True
    except EOFError:
        return False
    try:
        with keys_unseen():
            handle(chat, line)
    except EOFError:
        return False
    except (SleuthError, OSError) as error:
        print_error(error)
    except KeyboardInterrupt:
        chat.view.stopped()
    return True


def read_lines(chat: Chat, lines: Iterable[str], json: bool) -> int:
    """Process one question or command per line, skipping blank lines; returns the exit status.

    With ``json`` each question gives one object on standard output, and readable text goes to standard error.
    """
    status = 0
    for line in lines:
        try:
            exchange = handle(chat, line.rstrip("\r\n"), echo=True)
        except EOFError:
            break
        except (SleuthError, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            print_error(error)
            status = FAULTY
            continue
        if exchange is None:
            continue
        if json:
            print_json(as_json(exchange))
        else:
            chat.view.console.print()
            chat.view.console.file.flush()
        if not exchange.trajectory.scorable:
            status = status or UNANSWERED
    return status


def handle(chat: Chat, line: str, echo: bool = False) -> Exchange | None:
    """Process one line, a command or a question. Returns the exchange, if there was one."""
    if not line.strip():
        return None
    if line.startswith("/"):
        return run_command(chat, line.strip())
    if echo:
        chat.view.question(line.strip())
    return chat.ask(line)


def say_no_terminal(source: TextIO) -> None:
    """Tell the user why there is no prompt."""
    where = "standard input" if not source.isatty() else "standard output"
    error_console().print(f"{where} is not a terminal: reading one question per line", style="dim", soft_wrap=True)


@contextlib.contextmanager
def keys_unseen() -> Iterator[None]:
    """Keep keys pressed during an answer for the next prompt instead of echoing them into the answer."""
    try:
        import termios

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)
    except (ImportError, OSError, ValueError, AttributeError):
        yield
        return
    except termios.error:
        yield
        return
    quiet = [*before]
    quiet[3] = before[3] & ~termios.ECHO
    try:
        termios.tcsetattr(terminal, termios.TCSANOW, quiet)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
