"""Reward for finding what the question needs, whatever is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from sleuth.matching import has_answer, normalise_title
from sleuth.types import Hit, Question, Trajectory


@dataclass(frozen=True)
class Retrieval:
    """What the agent's own searches found.

    ``match`` title: supporting titles among the hits; answer: an accepted answer in the text of a hit
    (yes and no are in too many texts to count); auto: titles where the question names them, else the
    answer. ``mode`` for titles: share of them found, any of them, or all of them. None when the question
    has nothing to look for.
    """

    name: str = "retrieval"
    match: Literal["auto", "title", "answer"] = "auto"
    mode: Literal["share", "any", "all"] = "share"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        hits = [hit for turn in trajectory.searches for hit in turn.hits]
        if self.match != "answer" and question.supporting_titles:
            return self._titles(question.supporting_titles, hits)
        if self.match == "title":
            return None
        answers = [answer for answer in question.answers if answer.lower().strip(" .") not in ("yes", "no", "noanswer")]
        if not answers:
            return None
        return float(any(has_answer(hit.passage.text, answers) for hit in hits))

    def _titles(self, supporting: Iterable[str], hits: Sequence[Hit]) -> float:
        wanted = {normalise_title(title) for title in supporting}
        found = wanted & {normalise_title(hit.passage.title) for hit in hits}
        if self.mode == "share":
            return len(found) / len(wanted)
        return float(found == wanted if self.mode == "all" else bool(found))
