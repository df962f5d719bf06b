"""Reward for retrieving what the question needs, regardless of the answer given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rewards.config import RewardSettings
from sleuth.evidence import Found, contains_answer, golds_of, informative_answers
from sleuth.types import Question, Trajectory

Match = Literal["auto", "id", "title", "answer"]
Mode = Literal["share", "any", "all"]


class RetrievalSettings(RewardSettings):
    """What the searches found: ``match`` says what counts, ``mode`` how many gold passages do, see `Retrieval`."""

    kind: Literal["retrieval"] = "retrieval"
    match: Match = "auto"
    mode: Mode = "share"

    def open(self) -> Retrieval:
        return Retrieval(match=self.match, mode=self.mode)


@dataclass(frozen=True)
class Retrieval:
    """What the agent's own searches found.

    ``match`` id: gold passages among the hits, windows of them included; title: supporting titles among them; answer:
    an accepted answer in the text of a hit (yes and no occur in too many texts to count); auto: ids if the question
    lists them, else titles, else the answer. ``mode`` for ids and titles: the fraction found, any of them, or all of
    them; of alternatives one is all. None if the question has none of these.
    """

    name: str = "retrieval"
    match: Match = "auto"
    mode: Mode = "share"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        hits = [hit for turn in trajectory.searches for hit in turn.hits]
        if self.match != "answer" and (golds := golds_of(question, self.match)):
            return self._share(golds.found(hits))
        if self.match in ("id", "title"):
            return None
        if not informative_answers(question.answers):
            return None
        return float(any(contains_answer(hit.passage, question.answers) for hit in hits))

    def _share(self, golds: Found) -> float:
        if self.mode == "share":
            return golds.found / golds.wanted
        return float(golds.found == golds.wanted if self.mode == "all" else golds.found > 0)
