"""Reward for retrieving what the question needs, regardless of the answer given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rewards.config import RewardSettings
from sleuth.evidence import TitlesFound, contains_answer, informative_answers, titles_found
from sleuth.types import Question, Trajectory

Match = Literal["auto", "title", "answer"]
Mode = Literal["share", "any", "all"]


class RetrievalSettings(RewardSettings):
    """What the searches found: ``match`` says what counts, ``mode`` how many titles do, see `Retrieval`."""

    kind: Literal["retrieval"] = "retrieval"
    match: Match = "auto"
    mode: Mode = "share"

    def open(self) -> Retrieval:
        return Retrieval(match=self.match, mode=self.mode)


@dataclass(frozen=True)
class Retrieval:
    """What the agent's own searches found.

    ``match`` title: supporting titles among the hits; answer: an accepted answer in the text of a hit
    (yes and no occur in too many texts to count); auto: titles if the question lists them, else the
    answer. ``mode`` for titles: the fraction found, any of them, or all of them. None if the question
    has neither.
    """

    name: str = "retrieval"
    match: Match = "auto"
    mode: Mode = "share"

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
