"""A demonstrator: what plays a question for a policy to imitate, looking at what was found before each move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sleuth.types import Answer, Question, Search, Turn


@dataclass(frozen=True, slots=True)
class Move:
    """What a demonstrator does in a turn, and the thought before it."""

    think: str
    action: Search | Answer


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A demonstrator knows no honest way to go on; ``reason`` says why in a few words, for counting."""

    reason: str


class Demonstrator(Protocol):
    """Somebody who knows how a question is answered and plays it for a policy to imitate."""

    @property
    def question(self) -> Question: ...

    def act(self, turns: Sequence[Turn]) -> Move | GivenUp:
        """What to do after ``turns``, with what they have shown. Pure: the same turns lead to the same move."""
        ...
