"""What a turn earned by itself: the sources of turn scores, by ``kind``. No torch here."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from pydantic import Field

from sleuth.evidence import contains_answer, golds_of, informative_answers
from sleuth.failures import ends_run, failure_of
from sleuth.kinds import KindSettings
from sleuth.plugins import make_object
from sleuth.protocols import TurnReward
from sleuth.types import Answer, Failure, Hit, Invalid, Question, Search, Trajectory, Turn

TurnScores = tuple[float | None, ...]
"""One for each turn; None for a turn that is not judged."""
AnswerLogprobs = Callable[[Sequence[tuple[tuple[int, ...], str]]], list[float | None]]
"""Pairs of (transcript's token ids, answer) -> mean log-prob of the answer's tokens, in nats, if the policy answered
there; None for an answer without tokens. Asks the model that is being trained."""


class TurnScorer(Protocol):
    """Judges the turns of trajectories."""

    @property
    def needs_model(self) -> bool:
        """Whether ``answers`` is needed, that is, the model that is being trained."""
        ...

    def score(
        self, trajectories: Sequence[Trajectory], answers: AnswerLogprobs | None = None
    ) -> Sequence[TurnScores | Failure | None]:
        """None for a trajectory of whose question nothing is known by which to judge; a failure makes it unscored."""
        ...


class TurnScoreSettings(KindSettings):
    """By what turns are judged. ``score: gold_found`` is short for ``score: {kind: gold_found}``."""

    NOUN: ClassVar[str] = "turn score"
    KINDS: ClassVar[Mapping[str, str]] = {
        "gold_found": "agent.learning.credit.turn_scores:GoldFoundSettings",
        "information_gain": "agent.learning.credit.information_gain:InformationGainSettings",
    }
    OUTSIDE: ClassVar[str] = "agent.learning.credit.turn_scores:OutsideTurnScoreSettings"
    NEEDS_MODEL: ClassVar[bool] = False
    """Whether the model that is being trained judges."""

    def open(self) -> TurnScorer:
        """What judges. Raises ConfigError. Every kind has its own."""
        raise NotImplementedError

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value


class GoldFoundSettings(TurnScoreSettings):
    """Whether a search brings gold that the episode has not seen before (`GoldFound`)."""

    kind: Literal["gold_found"] = "gold_found"

    def open(self) -> TurnScorer:
        return PureTurnScorer(GoldFound(), self.kind)


class OutsideTurnScoreSettings(TurnScoreSettings):
    """A judge of one's own: ``kind`` is the dotted path of a class with ``score_turns(question, trajectory)``, such as
    a reward's, which is called with ``options`` as keywords.
    """

    options: dict[str, Any] = Field(default_factory=dict)

    def open(self) -> TurnScorer:
        see = "see sleuth.protocols.TurnReward"
        judge = make_object(self.kind, "grpo.credit.score", options=self.options, methods=["score_turns"], see=see)
        return PureTurnScorer(judge, self.kind)


@dataclass(frozen=True, slots=True)
class GoldFound:
    """1 for a search that brings gold not seen before in the episode, 0 for any other; only searches are judged.

    Gold are the question's gold passages, by id or by title; without any, passages whose text contains an accepted
    answer. Hits that stood in the prompt have been seen, and so has every alternative to a passage that was. None where
    nothing is known, as for a question without gold passages that is answered yes or no.
    """

    def score_turns(self, question: Question, trajectory: Trajectory) -> TurnScores | None:
        golds = golds_of(question)
        if not golds and not informative_answers(question.answers):
            return None

        def gold(hits: Sequence[Hit]) -> set[str]:
            if golds:
                return golds.among(hits)
            return {hit.passage.id for hit in hits if contains_answer(hit.passage, question.answers)}

        seen = gold(trajectory.given)
        scores: list[float | None] = []
        for turn in trajectory.turns:
            found = gold(turn.hits)
            scores.append(float(not found <= seen) if isinstance(turn.action, Search) else None)
            seen |= found
        return tuple(scores)


def asked(turn: Turn) -> bool:
    """Whether the turn searched or called a tool: its action asked something of the world outside the transcript."""
    return not isinstance(turn.action, Answer | Invalid)


@dataclass(frozen=True, slots=True)
class PureTurnScorer:
    """A judge that reads only question and trajectory. Where it raises, or gives anything but a finite number or None
    for each turn, it has failed. ``name`` is for messages.
    """

    judge: TurnReward
    name: str
    needs_model: ClassVar[bool] = False

    def score(
        self, trajectories: Sequence[Trajectory], answers: AnswerLogprobs | None = None
    ) -> list[TurnScores | Failure | None]:
        del answers
        return [self._of(trajectory) for trajectory in trajectories]

    def _of(self, trajectory: Trajectory) -> TurnScores | Failure | None:
        turns = len(trajectory.turns)
        try:
            given = self.judge.score_turns(trajectory.question, trajectory)
            if given is None:
                return None
            scores = tuple(None if value is None else float(value) for value in given)
            if len(scores) != turns or not all(map(math.isfinite, filter(None, scores))):
                raise ValueError(f"it gave {given!r}, not a finite number or None for each of {turns} turns")
        except Exception as error:  # judges are anybody's code
            if ends_run(error):
                raise
            return failure_of(f"the turn score {self.name}", error)
        return scores
