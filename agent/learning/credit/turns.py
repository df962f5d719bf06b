"""Turn-level advantages: what each turn earned by itself, mixed with the outcome and discounted turn by turn.

The advantage of every token of turn t of a trajectory of T turns:

    A_t = sum over k from t to T of  gamma ** (k - t) * (weight * n_k + (O if k == T else 0))

n_k is the normalised score of turn k, 0 where it is not judged, and O the advantage that the scheme ``outcome`` gives
the trajectory. Scores are normalised over all judged turns of a group, trajectories and turns alike: less their mean,
divided by their standard deviation. So did process supervision in DeepSeekMath (Shao et al. 2024, section 4.1.3) and
IGPO (arXiv 2510.14967); both outcome at the last turn and discount by turns are IGPO's. Unlike there, outcomes are
normalised apart from the scores, as in GiGPO (arXiv 2505.10978): a reward of 1 and a gain of 1 nat share no unit.
Observations count for nothing: only turns are counted, and only their tokens have an advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, SerializeAsAny, field_validator

from agent.learning.credit.config import CreditSettings
from agent.learning.credit.group import GroupSettings, centred, deviation
from agent.learning.credit.turn_scores import TurnScorer, TurnScoreSettings
from sleuth.errors import TrainingError
from sleuth.protocols import Advantage, Credit
from sleuth.settings import Share
from sleuth.types import ScoredTrajectory

_EPSILON = 1e-4
"""Added to a standard deviation before it divides, as in `group`."""
_Groups = Sequence[Sequence[ScoredTrajectory]]


class TurnsSettings(CreditSettings):
    """``score``: by what turns are judged (``gold_found``, ``information_gain``, a dotted path); None: only the outcome
    counts, discounted. ``gamma``: the discount of a turn. ``weight``: of turn scores beside the outcome.

    ``outcome``: the scheme of the trajectory's reward; None: turn scores alone count. ``baseline`` none leaves turn
    scores as they are, ``scale`` none does not divide them by their standard deviation.
    """

    BY_TOKEN: ClassVar[bool] = True

    kind: Literal["turns"] = "turns"
    score: SerializeAsAny[TurnScoreSettings] | None = None
    gamma: Share = 1.0
    weight: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1.0
    outcome: SerializeAsAny[CreditSettings] | None = GroupSettings()
    baseline: Literal["group", "none"] = "group"
    scale: Literal["group", "none"] = "group"

    @field_validator("outcome")
    @classmethod
    def _of_trajectories(cls, outcome: CreditSettings | None) -> CreditSettings | None:
        if outcome is not None and outcome.BY_TOKEN:
            raise ValueError("the outcome's scheme cannot be turns itself; name group, leave_one_out or reinforce")
        return outcome

    @property
    def needs_model(self) -> bool:
        """Whether turns are judged by the model that is being trained."""
        return self.score is not None and self.score.NEEDS_MODEL

    def open(self) -> TurnCredit:
        return TurnCredit(
            self.score.open() if self.score else None,
            self.outcome.open() if self.outcome else None,
            gamma=self.gamma,
            weight=self.weight,
            centre=self.baseline == "group",
            scale=self.scale == "group",
        )


@dataclass(frozen=True, slots=True)
class TurnCredit:
    """One number per sampled token. Reads ``turn_scores`` of the trajectories; ``scorer`` says what fills them in."""

    scorer: TurnScorer | None = None
    outcome: Credit | None = None
    gamma: float = 1.0
    weight: float = 1.0
    centre: bool = True
    scale: bool = True

    def advantages(self, groups: _Groups) -> list[list[list[float]]]:
        outcomes = self.outcome.advantages(groups) if self.outcome else [[0.0 for _ in group] for group in groups]
        return [self._of(group, outcome) for group, outcome in zip(groups, outcomes, strict=True)]

    def _of(self, group: Sequence[ScoredTrajectory], outcomes: Sequence[Advantage]) -> list[list[float]]:
        turns = self._normalised([_scores(scored) for scored in group])
        return [
            _by_token(scored, self._returns(own, _number(outcome)))
            for scored, own, outcome in zip(group, turns, outcomes, strict=True)
        ]

    def _normalised(self, rows: Sequence[Sequence[float | None]]) -> list[list[float]]:
        judged = [score for row in rows for score in row if score is not None]
        if not judged:
            return [[0.0] * len(row) for row in rows]
        values = centred(judged) if self.centre else judged
        spread = deviation(judged) + _EPSILON if self.scale else 1.0
        rest = iter([value / spread for value in values])
        return [[0.0 if score is None else next(rest) for score in row] for row in rows]

    def _returns(self, scores: Sequence[float], outcome: float) -> list[float]:
        """What comes from each turn on, the outcome with the last."""
        value, found = outcome, []
        for place, score in enumerate(reversed(scores)):
            value = (self.gamma * value if place else value) + self.weight * score
            found.append(value)
        return found[::-1]


def _scores(scored: ScoredTrajectory) -> Sequence[float | None]:
    turns = len(scored.trajectory.turn_lengths)
    scores = (None,) * turns if scored.turn_scores is None else scored.turn_scores
    if len(scores) != turns:
        raise TrainingError(f"{len(scores)} turn scores for the {turns} turns of '{scored.trajectory.question.id}'")
    return scores


def _by_token(scored: ScoredTrajectory, turns: Sequence[float]) -> list[float]:
    lengths = scored.trajectory.turn_lengths
    return [value for value, length in zip(turns, lengths, strict=True) for _ in range(length)]


def _number(outcome: Advantage) -> float:
    try:
        return float(outcome)  # type: ignore[arg-type]  # numpy's and torch's are numbers too
    except (TypeError, ValueError):
        raise TrainingError(
            f"the outcome's scheme gave a {type(outcome).__name__} where credit by turns needs a number",
            "it must give one number for each trajectory",
        ) from None
