"""Terminal output shared by commands: human-readable text on standard error, JSON on standard output."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.console import Console

from sleuth.errors import SleuthError
from sleuth.progress import plain_progress
from sleuth.types import Call

OnCount = Callable[[int, int], None]
"""Called as (done, total)."""


def error_console() -> Console:
    """A console on standard error, for human-readable output. Not cached, since a test may replace the stream."""
    return Console(stderr=True, highlight=False)


def output_console() -> Console:
    """A console on standard output, for a command whose result is text to read; lines are never wrapped in a pipe."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    return console


def plain(text: str) -> str:
    """Outside text made safe for a terminal: non-printing characters are escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def called(call: Call) -> str:
    """A call of a tool on one line."""
    return f"{call.tool} {json.dumps(call.arguments, ensure_ascii=False)}"


def print_json(content: Mapping[str, Any]) -> None:
    """One JSON object on a line of standard output."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()


def print_error(error: SleuthError | OSError) -> None:
    """``error`` as one line on standard error, its hint included."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    console = error_console()
    console.print("[bold red]error:[/] ", end="")
    console.print(plain(" ".join(text.split())), markup=False, soft_wrap=True)


@contextlib.contextmanager
def counting(title: str) -> Iterator[OnCount]:
    """A progress bar on a terminal; in a pipe, a plain line now and then."""
    console = error_console()
    if not console.is_terminal:
        with plain_progress(title, lambda line: console.print(line, markup=False, soft_wrap=True)) as tally:
            yield tally
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
