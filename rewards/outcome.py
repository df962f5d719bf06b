"""Rewards for the final answer."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.text_match import exact_match, f1
from sleuth.types import Question, Trajectory


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
