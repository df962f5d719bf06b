"""Makes the calls of tools that a policy asks for. A call that fails or takes too long is an answer, not an error."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sleuth.errors import ToolError
from sleuth.types import Call, ToolAnswer, Turn

if TYPE_CHECKING:
    from sleuth.protocols import Tool

log = logging.getLogger("sleuth.tools")
_LINE = 200
"""Characters of an error that the policy reads."""


@dataclass(slots=True)
class _Running:
    """A call under way in a thread of its own."""

    name: str
    timeout_s: float
    started: float = field(default_factory=time.monotonic)
    ended: threading.Event = field(default_factory=threading.Event)
    text: str = ""
    error: BaseException | None = None


class ToolBox:
    """The tools of a run by name, with the seconds that a call of each may take.

    A call that hangs keeps its thread, but holds up neither the episode nor the end of the process.
    """

    def __init__(self, tools: Mapping[str, Tool], limits: Mapping[str, float]) -> None:
        self._tools = tools
        self._limits = limits
        self._logged: set[tuple[str, type[BaseException] | None]] = set()

    def call(self, calls: Sequence[tuple[Call, Sequence[Turn]]]) -> list[ToolAnswer]:
        """An answer for each call, with the turns of its episode so far; all of them run at once."""
        running = [self._start(call, turns) for call, turns in calls]
        return [self._answer(one) for one in running]

    def _start(self, call: Call, turns: Sequence[Turn]) -> _Running:
        running = _Running(call.tool, self._limits[call.tool])
        work = threading.Thread(
            target=_work, args=(self._tools[call.tool], call, tuple(turns), running), name=call.tool, daemon=True
        )
        work.start()
        return running

    def _answer(self, running: _Running) -> ToolAnswer:
        name = running.name
        if not running.ended.wait(max(running.started + running.timeout_s - time.monotonic(), 0.0)):
            self._log(name, None, f"took longer than {running.timeout_s:g} s (its timeout_s)")
            return ToolAnswer(f"{name} failed: it took longer than {running.timeout_s:g} s", failed=True)
        error = running.error
        if error is None:
            return ToolAnswer(running.text)
        if isinstance(error, ToolError):
            return ToolAnswer(f"{name} failed: {_line(error.message)}", failed=True)
        said = f"{type(error).__name__}: {error}".removesuffix(": ")
        self._log(name, type(error), f"raised {said}")
        return ToolAnswer(f"{name} failed: {_line(said)}", failed=True)

    def _log(self, name: str, kind: type[BaseException] | None, said: str) -> None:
        """The first of each kind; the number of failures is among the metrics."""
        if (name, kind) not in self._logged:
            self._logged.add((name, kind))
            log.warning("the tool %s %s; the policy is told, and more of these are only counted", name, said)


def _work(tool: Tool, call: Call, turns: tuple[Turn, ...], running: _Running) -> None:
    try:
        text = tool.call(dict(call.arguments), turns)
        if not isinstance(text, str):
            raise TypeError(f"it returned {type(text).__name__}, not str")
        running.text = text
    except BaseException as error:  # noqa: BLE001 (becomes the answer)
        running.error = error
    running.ended.set()


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LINE else line[: _LINE - 1] + "…"
