"""Turn-level advantages: what each turn earned by itself, mixed with the outcome and discounted turn by turn.

Of a trajectory of T turns with scores s_1 to s_T, 0 where a turn is not judged, the tokens of turn t have the advantage

    A_t = weight * N(G_t) + gamma ** (T - t) * O        G_t = sum over k from t to T of gamma ** (k - t) * s_k

O is the advantage that the scheme ``outcome`` gives the trajectory, as if its reward came with the last turn. N
compares the return G_t, by ``baseline``:

- ``turn``: with the returns from turn t on of the group's trajectories that have a turn t: less their mean, divided by
  their standard deviation. This is the step-level advantage of GiGPO (Feng et al. 2025, arXiv 2505.10978), with the
  question and the number of the turn for an anchor state: who answers at once is compared with who searches on.
- ``group``: scores are normalised before they are added up, over all judged turns of the group, as in DeepSeekMath's
  process supervision (Shao et al. 2024, section 4.1.3) and IGPO (Wang et al. 2025, arXiv 2510.14967). A search is
  compared with other searches only: where all earn the same, searching on earns nothing.
- ``none``: not at all.

Unlike in IGPO, outcomes are normalised apart from scores: a reward of 1 and a gain of 1 nat share no unit. Observations
count for nothing: turns are counted, not tokens, and only what was sampled has an advantage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from agent.learning.credit.config import CreditSettings
from agent.learning.credit.group import EPSILON, GroupSettings, centred, deviation
from agent.learning.credit.turn_scores import TurnScorer, TurnScoreSettings
from sleuth.errors import TrainingError
from sleuth.protocols import Advantage, Credit
from sleuth.settings import Share
from sleuth.types import ScoredTrajectory

Baseline = Literal["turn", "group", "none"]
_Groups = Sequence[Sequence[ScoredTrajectory]]
_Scores = Sequence[float | None]
_OF_SCORES = ("weight", "baseline", "scale")
"""Settings that do nothing without scores of turns."""


class TurnsSettings(CreditSettings):
    """``score``: by what turns are judged (``gold_found``, ``information_gain``, a dotted path); None: only the outcome
    counts, discounted. ``gamma``: the discount of a turn. ``weight``: of turn scores beside the outcome.

    ``outcome``: the scheme of the trajectory's reward; None: turn scores alone count. ``baseline``: with what turns are
    compared (see the module); ``scale`` none does not divide by a standard deviation.
    """

    BY_TOKEN: ClassVar[bool] = True

    kind: Literal["turns"] = "turns"
    score: SerializeAsAny[TurnScoreSettings] | None = None
    gamma: Share = 1.0
    weight: Annotated[float, Field(ge=0.0)] = 1.0
    outcome: SerializeAsAny[CreditSettings] | None = GroupSettings()
    baseline: Baseline = "turn"
    scale: Literal["group", "none"] = "group"

    @field_validator("outcome")
    @classmethod
    def _of_trajectories(cls, outcome: CreditSettings | None) -> CreditSettings | None:
        if outcome is not None and outcome.BY_TOKEN:
            raise ValueError("the outcome's scheme cannot be turns itself; name group, leave_one_out or reinforce")
        return outcome

    @model_validator(mode="after")
    def _gives_any(self) -> TurnsSettings:
        if self.outcome is None and (self.score is None or self.weight == 0.0):
            raise ValueError("no turn ever has an advantage without an outcome: name a score of a weight above 0")
        idle = [name for name in _OF_SCORES if getattr(self, name) != type(self).model_fields[name].default]
        if self.score is None and idle:
            raise ValueError(f"{idle[0]} is about turn scores, and there is no score: name one, or leave {idle[0]} out")
        return self

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
            baseline=self.baseline,
            scale=self.scale == "group",
        )


@dataclass(frozen=True, slots=True)
class TurnCredit:
    """One number per sampled token. Reads ``turn_scores`` of the trajectories; ``scorer`` says what fills them in."""

    scorer: TurnScorer | None = None
    outcome: Credit | None = None
    gamma: float = 1.0
    weight: float = 1.0
    baseline: Baseline = "turn"
    scale: bool = True

    def advantages(self, groups: _Groups) -> list[list[list[float]]]:
        outcomes = self.outcome.advantages(groups) if self.outcome else [[0.0 for _ in group] for group in groups]
        return [self._of(group, outcome) for group, outcome in zip(groups, outcomes, strict=True)]

    def _of(self, group: Sequence[ScoredTrajectory], outcomes: Sequence[Advantage]) -> list[list[float]]:
        scores = [_scores(scored) for scored in group]
        compared = iter(self._compared([row for row in scores if row is not None]))
        turns = [None if row is None else next(compared) for row in scores]
        return [
            _by_token(scored, self._mixed(own, _number(outcome), len(scored.trajectory.turn_lengths)))
            for scored, own, outcome in zip(group, turns, outcomes, strict=True)
        ]

    def _mixed(self, own: Sequence[float] | None, outcome: float, turns: int) -> list[float]:
        discounted = [self.gamma ** (turns - 1 - turn) * outcome for turn in range(turns)]
        return discounted if own is None else [self.weight * n + o for n, o in zip(own, discounted, strict=True)]

    def _compared(self, rows: Sequence[_Scores]) -> list[list[float]]:
        """N(G) of every turn."""
        if self.baseline != "turn":
            return [self._returns(row) for row in self._normalised(rows)]
        returns = [self._returns([score or 0.0 for score in row]) for row in rows]
        for turn in range(max(map(len, rows), default=0)):
            there = [row for row in returns if len(row) > turn]
            for row, value in zip(there, self._relative([row[turn] for row in there]), strict=True):
                row[turn] = value
        return returns

    def _normalised(self, rows: Sequence[_Scores]) -> list[list[float]]:
        """Scores as they are added up, 0 where a turn is not judged."""
        judged = [score for row in rows for score in row if score is not None]
        rest = iter(self._relative(judged) if self.baseline == "group" else judged)
        return [[0.0 if score is None else next(rest) for score in row] for row in rows]

    def _relative(self, values: Sequence[float]) -> list[float]:
        if not values:
            return []
        spread = deviation(values) + EPSILON if self.scale else 1.0
        return [value / spread for value in centred(values)]

    def _returns(self, scores: Sequence[float]) -> list[float]:
        """What comes from each turn on, discounted."""
        value, found = 0.0, []
        for score in reversed(scores):
            value = self.gamma * value + score
            found.append(value)
        return found[::-1]


def _scores(scored: ScoredTrajectory) -> _Scores | None:
    scores, turns = scored.turn_scores, len(scored.trajectory.turn_lengths)
    if scores is not None and len(scores) != turns:
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
