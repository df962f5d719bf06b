"""Streams text to a terminal: a label on the left, wrapped lines, no control sequences from the text."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Console

from cli.console import plain

GUTTER = 10
"""Width of the labels, in columns."""
_SOFT = 12
"""A line breaks at the first space within this many columns of the margin, so that few words are split."""


class Flow:
    """Sections of streamed text: ``begin``, any number of ``write``, ``end``.

    White space at the start and end of a section is dropped, and several empty lines become one. Every character is
    written as it arrives, except white space, which waits for the next visible character.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._style = ""
        self._column = 0
        self._blank = ""
        self._open = False
        self._started = False

    def begin(self, label: str, style: str) -> None:
        self.end()
        self._style = style
        self._blank = ""
        self._started = False
        self._open = True
        self._put(f"{label:>{GUTTER - 2}}  ", f"{style} bold" if style else "bold")
        self._column = GUTTER

    def write(self, text: str) -> None:
        """Write more of the section; control characters are escaped, and markup is not interpreted."""
        run = ""
        for char in text:
            if char.isspace():
                self._put(run, self._style)
                run = ""
                self._blank += char
                continue
            if self._blank:
                self._space()
            shown = plain(char)
            width = cell_len(shown)
            if self._column + width > self._console.width:
                self._put(run, self._style)
                run = ""
                self._newline()
            run += shown
            self._column += width
            self._started = True
        self._put(run, self._style)

    def end(self) -> None:
        if self._open:
            self._console.print()
            self._open = False

    def _space(self) -> None:
        """Write the pending white space, now that something follows it."""
        blank, self._blank = self._blank, ""
        if not self._started:
            return
        lines = min(blank.count("\n"), 2)
        if lines:
            if lines == 2:
                self._put("\n", "")
            self._newline()
        elif self._column >= self._console.width - _SOFT:
            self._newline()
        else:
            self._put(" " * len(blank), self._style)
            self._column += len(blank)

    def _newline(self) -> None:
        self._put("\n" + " " * GUTTER, "")
        self._column = GUTTER

    def _put(self, text: str, style: str) -> None:
        if text:
            self._console.out(text, style=style or None, end="", highlight=False)
