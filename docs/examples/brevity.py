"""A reward of one's own: answers of at most so many words."""

from __future__ import annotations

from dataclasses import dataclass

from sleuth.types import Question, Trajectory


@dataclass(frozen=True)
class Brevity:
    """1 for an answer of at most ``words`` words, 0 for a longer one; None where there is no answer to judge."""

    words: int = 5
    name: str = "brevity"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        del question
        if trajectory.answer is None:
            return None
        return float(len(trajectory.answer.split()) <= self.words)
