"""Reads input from the user: history, several lines, completion of commands."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from cli.chat.commands import Command

MODES = ("search", "direct", "cot", "rag")


def make_prompt(
    commands: Mapping[str, Command], history: Path | None, toolbar: Callable[[], str]
) -> PromptSession[str]:
    """A prompt in which Enter sends, and Alt-Enter or a backslash before Enter starts another line."""
    return PromptSession(
        message=HTML("<ansicyan><b>question</b></ansicyan>  "),
        history=_history(history),
        multiline=True,
        prompt_continuation=lambda width, _line, _soft: " " * width,
        key_bindings=_keys(),
        completer=CommandCompleter(commands),
        complete_while_typing=True,
        bottom_toolbar=toolbar,
        enable_open_in_editor=False,
    )


class CommandCompleter(Completer):
    """Names of commands, and the modes or paths that follow them."""

    def __init__(self, commands: Mapping[str, Command]) -> None:
        self._commands = commands
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, rest = text[1:].partition(" ")
        if not space:
            for known, command in self._commands.items():
                if known.startswith(name):
                    yield Completion(known, start_position=-len(name), display=f"/{known}", display_meta=command.help)
            return
        argument = self._commands[name].argument if name in self._commands else "none"
        if argument == "mode":
            yield from (Completion(mode, start_position=-len(rest)) for mode in MODES if mode.startswith(rest))
        elif argument in ("path", "retriever"):
            yield from self._paths.get_completions(Document(rest), complete_event)


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _another_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history(path: Path | None) -> History:
    """Kept in a file that only its owner can read, or in memory if that is impossible."""
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            pass
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))
