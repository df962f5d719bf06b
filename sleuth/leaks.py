"""Training questions about the same passages as questions that are kept for measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sleuth.evidence import normalise_title, parent_id
from sleuth.types import Question

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The gold passages and gold titles of ``questions`` questions kept for measuring. False if nothing is known."""

    passages: frozenset[str] = frozenset()
    titles: frozenset[str] = frozenset()
    questions: int = 0

    @classmethod
    def of(cls, questions: Iterable[Question]) -> HeldOut:
        kept = list(questions)
        passages = frozenset(parent_id(name) for question in kept for name in question.gold_ids)
        return cls(passages, frozenset(title for question in kept for title in _titles(question)), len(kept))

    def __bool__(self) -> bool:
        return bool(self.passages or self.titles)

    def has_passage_of(self, question: Question) -> bool:
        """Whether ``question`` has a gold passage, or a window of one, that is held out."""
        return any(parent_id(name) in self.passages for name in question.gold_ids)

    def has_title_of(self, question: Question) -> bool:
        return not self.titles.isdisjoint(_titles(question))


@dataclass(frozen=True, slots=True)
class Leaks:
    """How many of ``of`` training questions share a gold passage with one held out, or a gold title only."""

    of: int = 0
    by_passage: int = 0
    by_title: int = 0

    @property
    def count(self) -> int:
        return self.by_passage + self.by_title

    def __add__(self, other: Leaks) -> Leaks:
        return Leaks(self.of + other.of, self.by_passage + other.by_passage, self.by_title + other.by_title)


def without_leaks(rows: Sequence[T], held: HeldOut, question: Callable[[T], Question]) -> tuple[list[T], Leaks]:
    """The rows whose question shares neither gold passage nor gold title with one held out, and what was dropped."""
    kept: list[T] = []
    by_passage = by_title = 0
    for row in rows:
        if held.has_passage_of(question(row)):
            by_passage += 1
        elif held.has_title_of(question(row)):
            by_title += 1
        else:
            kept.append(row)
    return kept, Leaks(len(rows), by_passage, by_title)


def _titles(question: Question) -> set[str]:
    return set(map(normalise_title, question.supporting_titles))
