"""Training questions about the same passages as questions that are kept for measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from sleuth.evidence import normalise_title, parent_id, same_text
from sleuth.types import Question

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept:
    """The dev and test questions, by id and by text: no row of theirs trains, whatever file it came from."""

    ids: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()

    @classmethod
    def of(cls, questions: Iterable[Question]) -> Kept:
        kept = list(questions)
        return cls(frozenset(one.id for one in kept), frozenset(same_text(one.text) for one in kept))

    def why(self, question_id: str, *texts: str) -> str:
        """By what a row is one of theirs: ``id`` or ``text``; empty if it is not."""
        return "id" if question_id in self.ids else "text" if any(same_text(t) in self.texts for t in texts) else ""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """The gold passages and gold titles of ``questions`` questions kept for measuring, and, where those must not be
    asked either, their ids and texts. False if nothing is known.
    """

    passages: frozenset[str] = frozenset()
    titles: frozenset[str] = frozenset()
    questions: int = 0
    asked: Kept = Kept()

    @classmethod
    def of(cls, questions: Iterable[Question], *, golds: bool = True, asked: bool = False) -> HeldOut:
        kept = list(questions)
        judged = kept if golds else []
        return cls(
            frozenset(parent_id(name) for question in judged for name in question.gold_ids),
            frozenset(title for question in judged for title in _titles(question)),
            len(kept),
            Kept.of(kept if asked else []),
        )

    def __bool__(self) -> bool:
        return bool(self.passages or self.titles or self.asked.ids)

    def asks(self, question: Question) -> bool:
        """Whether ``question`` has the id or the text of one that is held out and must not be asked."""
        return bool(self.asked.ids and self.asked.why(question.id, question.text))

    def has_passage_of(self, question: Question) -> bool:
        """Whether ``question`` has a gold passage, or a window of one, that is held out."""
        return any(parent_id(name) in self.passages for name in question.gold_ids)

    def has_title_of(self, question: Question) -> bool:
        return not self.titles.isdisjoint(_titles(question))


@dataclass(frozen=True, slots=True)
class Leaks:
    """How many of ``of`` training questions are asked by those held out too, share a gold passage with one, or a gold
    title only.
    """

    of: int = 0
    by_passage: int = 0
    by_title: int = 0
    asked: int = 0

    @property
    def count(self) -> int:
        return self.by_passage + self.by_title + self.asked

    def __add__(self, other: Leaks) -> Leaks:
        passage, title = self.by_passage + other.by_passage, self.by_title + other.by_title
        return Leaks(self.of + other.of, passage, title, self.asked + other.asked)


def without_leaks(rows: Sequence[T], held: HeldOut, question: Callable[[T], Question]) -> tuple[list[T], Leaks]:
    """The rows whose question shares neither gold passage nor gold title with one held out, nor is one where that
    must not be, and what was dropped.
    """
    kept: list[T] = []
    by_passage = by_title = asked = 0
    for row in rows:
        if held.asks(question(row)):
            asked += 1
        elif held.has_passage_of(question(row)):
            by_passage += 1
        elif held.has_title_of(question(row)):
            by_title += 1
        else:
            kept.append(row)
    return kept, Leaks(len(rows), by_passage, by_title, asked)


def _titles(question: Question) -> set[str]:
    return set(map(normalise_title, question.supporting_titles))
