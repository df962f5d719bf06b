"""Reward for retrieving what the question needs, regardless of the answer given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sleuth.evidence import TitlesFound, contains_answer, informative_answers, titles_found
from sleuth.types import Question, Trajectory


@dataclass(frozen=True)
class Retrieval:
    """What the agent's own searches found.

    ``match`` title: supporting titles among the hits; answer: an accepted answer in the text of a hit
    (yes and no occur in too many texts to count); auto: titles if the question lists them, else the
    answer. ``mode`` for titles: the fraction found, any of them, or all of them. None if the question
    has neither.
    """

    name: str = "retrieval"
    match: Literal["auto", "title", "answer"] = "auto"
    mode: Literal["share", "any", "all"] = "share"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        hits = [hit for turn in trajectory.searches for hit in turn.hits]
        if self.match != "answer" and question.supporting_titles:
            return self._titles(titles_found(question, hits))
        if self.match == "title":
            return None
        if not informative_answers(question.answers):
            return None
        return float(any(contains_answer(hit.passage, question.answers) for hit in hits))

    def _titles(self, titles: TitlesFound) -> float:
        if self.mode == "share":
            return titles.found / titles.wanted
        return float(titles.found == titles.wanted if self.mode == "all" else titles.found > 0)
