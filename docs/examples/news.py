"""A reward of one's own that judges turns too: how much of what a search brings the episode has not seen before."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from sleuth.types import Question, Search, Trajectory


@dataclass(frozen=True)
class News:
    """The fraction of a search's passages that no earlier search brought; of an episode, the mean over its searches."""

    name: str = "news"

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        judged = [score for score in self.score_turns(question, trajectory) if score is not None]
        return fmean(judged) if judged else None

    def score_turns(self, question: Question, trajectory: Trajectory) -> list[float | None]:
        del question
        seen: set[str] = set()
        scores: list[float | None] = []
        for turn in trajectory.turns:
            found = {hit.passage.id for hit in turn.hits}
            scores.append(len(found - seen) / max(len(found), 1) if isinstance(turn.action, Search) else None)
            seen |= found
        return scores
