"""Information gain: what a search adds to the log-prob of the accepted answer under the policy that is being trained.

Source: IGPO (Wang et al. 2025, arXiv 2510.14967), with the mean log-prob of the answer's tokens where the paper has its
exponential, the probability. No judge, no further sampling: a pass over the transcript before and after each search.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from agent.learning.credit.turn_scores import AnswerLogprobs, TurnScorer, TurnScores, TurnScoreSettings, asked
from sleuth.errors import TrainingError
from sleuth.types import Trajectory

_Asked = tuple[tuple[int, ...], str]


class InformationGainSettings(TurnScoreSettings):
    """How much likelier an accepted answer has become by what a search brought (`InformationGain`)."""

    NEEDS_MODEL: ClassVar[bool] = True

    kind: Literal["information_gain"] = "information_gain"

    def open(self) -> TurnScorer:
        return InformationGain()


@dataclass(frozen=True, slots=True)
class InformationGain:
    """The score of a search or of a tool's call, in nats: L(transcript with its observation) - L(transcript before its
    turn).

    L is the mean log-prob of the tokens of an accepted answer, written where the policy would write it, and that of the
    best answer. The best is chosen anew at every point, so that L depends on the transcript alone and the scores of an
    episode add up to what all its observations have gained. Turns that ask nothing, and one whose observation found no
    room, are not judged; nor is a question without accepted answers.
    """

    needs_model: ClassVar[bool] = True

    def score(
        self, trajectories: Sequence[Trajectory], answers: AnswerLogprobs | None = None
    ) -> list[TurnScores | None]:
        if answers is None:
            raise TrainingError("information gain needs the model that is being trained, which is not at hand here")
        points = [_points(trajectory) for trajectory in trajectories]
        wanted: dict[_Asked, None] = {}  # each once: a group's trajectories begin alike
        for trajectory, searches in zip(trajectories, points, strict=True):
            for place in searches:
                for end in place or ():
                    wanted.update(dict.fromkeys(_pairs(trajectory, end)))
        known = dict(zip(wanted, answers(list(wanted)), strict=True)) if wanted else {}

        def best(trajectory: Trajectory, end: int) -> float | None:
            values = [value for pair in _pairs(trajectory, end) if (value := known[pair]) is not None]
            return max(values, default=None)

        return [
            tuple(_gain(best(trajectory, p[0]), best(trajectory, p[1])) if p else None for p in searches)
            if trajectory.question.answers
            else None
            for trajectory, searches in zip(trajectories, points, strict=True)
        ]


def _gain(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


def _pairs(trajectory: Trajectory, end: int) -> list[_Asked]:
    """The questions to the model at a point of the transcript, one for each accepted answer."""
    return [(tuple(trajectory.token_ids[:end]), answer) for answer in dict.fromkeys(trajectory.question.answers)]


def _points(trajectory: Trajectory) -> list[tuple[int, int] | None]:
    """For each turn, the transcript's length in tokens before it and with its observation; None if it is not judged."""
    length = sum(len(s.token_ids) for s in trajectory.segments if s.source == "prompt")
    ends: list[tuple[int, int, bool]] = []  # before the turn, after it, whether an observation followed
    for segment in trajectory.segments:
        if segment.source == "policy":
            ends.append((length, length + len(segment.token_ids), False))
        elif segment.source == "environment" and ends:
            ends[-1] = (ends[-1][0], ends[-1][1] + len(segment.token_ids), True)
        length = ends[-1][1] if ends else length
    return [
        (before, after) if observed and asked(turn) else None
        for turn, (before, after, observed) in zip(trajectory.turns, ends, strict=True)
    ]
