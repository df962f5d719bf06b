"""The two ways to hold a session: with a person at a terminal, or line by line in a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TextIO

from agent.session import Exchange
from cli.chat.commands import Chat, run_command
from cli.chat.view import as_json
from cli.console import people, print_error, print_json
from sleuth.errors import SleuthError

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

FAULTY = 2
"""Exit status of a pipe in which a line could not be carried out."""
UNANSWERED = 3
"""Exit status of a pipe in which the retriever failed on a question."""


def converse(chat: Chat, prompt: PromptSession[str]) -> None:
    """Ask, answer, until Ctrl-D. Ctrl-C at the prompt empties the line; during an answer it stops the answer."""
    going = True
    while going:
        with contextlib.suppress(KeyboardInterrupt):  # pressed twice: the first has stopped what there was to stop
            going = _exchange(chat, prompt)


def _exchange(chat: Chat, prompt: PromptSession[str]) -> bool:
    """One line and what comes of it; False when the person leaves."""
    try:
        line = prompt.prompt()
    except KeyboardInterrupt:
        chat.view.line("Ctrl-D or /quit leaves", "dim")
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
    """A question or command a line; blank lines do not count. The exit status.

    With ``json`` each question gives one object on standard output, and what is for people goes to standard error.
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
    """Carry out one line: a command, or a question. What was played, if anything was."""
    if not line.strip():
        return None
    if line.startswith("/"):
        return run_command(chat, line.strip())
    if echo:
        chat.view.question(line.strip())
    return chat.ask(line)


def say_no_terminal(source: TextIO) -> None:
    """Tell people why there is no prompt."""
    where = "standard input" if not source.isatty() else "standard output"
    people().print(f"{where} is no terminal: reading one question a line, plain text", style="dim", soft_wrap=True)


@contextlib.contextmanager
def keys_unseen() -> Iterator[None]:
    """Keys pressed during an answer are kept for the next prompt and not written into the answer."""
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
