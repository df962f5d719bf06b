"""Rewards for the final answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rewards.config import RewardSettings
from rewards.text_match import Cover, cover_match, exact_match, f1
from sleuth.settings import Count
from sleuth.types import Question, Trajectory


class ExactMatchSettings(RewardSettings):
    """1 for an accepted answer, after normalisation."""

    kind: Literal["exact_match"] = "exact_match"

    def open(self) -> ExactMatch:
        return ExactMatch()


class F1Settings(RewardSettings):
    """Token F1. Beside it belong ``no_search`` and ``no_answer``: alone it teaches not to answer (docs/rewards.md)."""

    kind: Literal["f1"] = "f1"

    def open(self) -> F1:
        return F1()


class CoverMatchSettings(RewardSettings):
    """1 for an answer that contains an accepted one. ``match`` says how, see `rewards.text_match.cover_match`.

    An answer of more than ``max_words`` words covers nothing, so that listing candidates does not pay.
    """

    kind: Literal["cover_match"] = "cover_match"
    match: Cover = "text"
    max_words: Count | None = None

    def open(self) -> CoverMatch:
        return CoverMatch(match=self.match, max_words=self.max_words)


@dataclass(frozen=True)
class ExactMatch:
    """1 if the answer equals an accepted one after normalisation, else 0; None without accepted answers."""

    name: str = "exact_match"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        return exact_match(trajectory.answer, question.answers) if question.answers else None


@dataclass(frozen=True)
class F1:
    """Token F1 of the answer against the best-matching accepted one; None without accepted answers."""

    name: str = "f1"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        return f1(trajectory.answer, question.answers) if question.answers else None


@dataclass(frozen=True)
class CoverMatch:
    """1 if the answer contains an accepted one, else 0; None without accepted answers."""

    name: str = "cover_match"
    match: Cover = "text"
    max_words: int | None = None

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        if not question.answers:
            return None
        answer = trajectory.answer
        if answer is not None and self.max_words is not None and len(answer.split()) > self.max_words:
            return 0.0
        return cover_match(answer, question.answers, self.match)
