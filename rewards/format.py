"""Reward for following the protocol."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from rewards.config import RewardSettings
from sleuth.types import Answer, Call, Invalid, Question, Trajectory, Turn

_CALLS = re.compile(r"\s*(?:<tool_call>(?:(?!<tool_call>).)*?</tool_call>\s*)+", re.DOTALL)


class FormatSettings(RewardSettings):
    """The fraction of well-formed turns; with ``think``, each begins with one thought."""

    kind: Literal["format"] = "format"
    think: bool = True

    def open(self) -> Format:
        return Format(think=self.think)


@dataclass(frozen=True)
class Format:
    """From 0 to 1: the fraction of well-formed turns, halved unless the episode ends in an answer.

    A turn is well-formed if it acted and, with ``think``, if exactly one thought precedes the action, of which the turn
    has nothing else (in the Hermes form, several calls). Only the policy's own text is considered.
    """

    name: str = "format"
    think: bool = True

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        del question
        turns = trajectory.turns
        if not turns:
            return 0.0
        share = sum(map(self._well_formed, turns)) / len(turns)
        return share if isinstance(turns[-1].action, Answer) else share / 2

    def _well_formed(self, turn: Turn) -> bool:
        if isinstance(turn.action, Invalid):
            return False
        tool = turn.action.tool if isinstance(turn.action, Call) else ""
        return not self.think or thinks_then_acts(turn.text, turn.thinking, tool)


def thinks_then_acts(text: str, thinking: bool = False, tool: str = "") -> bool:
    """Whether a turn is one closed, non-empty thought followed directly by one action.

    ``thinking``: the thought was open before the turn, so the turn has no tag that opens it. ``tool``: the one that the
    turn calls, if it calls one.
    """
    if not thinking:
        before, opening, text = text.partition("<think>")
        if before.strip() or not opening:
            return False
    thought, closing, rest = text.partition("</think>")
    if not closing or not thought.strip() or "<think>" in thought:
        return False
    if rest.lstrip().startswith("<tool_call>"):
        return _CALLS.fullmatch(rest) is not None
    names = ("search", "answer", *([tool] if tool else []))
    action = re.split(rf"</(?:{'|'.join(map(re.escape, names))})>", rest, maxsplit=1)[0]
    openings = tuple(f"<{name}>" for name in names)
    return action.lstrip().startswith(openings) and sum(map(action.count, openings)) == 1
