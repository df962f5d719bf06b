"""Settings of the kinds of stages. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, SerializeAsAny, model_validator

from retrieval.config import IndexedSettings
from retrieval.training.config import InBatchSettings, SourceSettings, StageSettings, TrainingSettings
from retrieval.training.mining_config import MiningSettings
from retrieval.training.rerankers.config import RerankerSettings
from sleuth.settings import Count, Rate

BASE = "base"
"""What a stage starts from to begin with the run's own encoder again."""


class TrainStageSettings(StageSettings):
    """Trains the encoder of the stage before, or that of the stage ``start``, with data and training of its own."""

    kind: Literal["train"] = "train"
    start: str | None = None
    """Name of an earlier stage, or ``base``: the run's encoder. None: the last stage before that made an encoder."""
    data: list[SourceSettings] = Field(default_factory=list)
    """Empty: the run's."""
    mining: MiningSettings | None = None
    rounds: Count = 1
    round_corpus: str | None = None
    training: SerializeAsAny[TrainingSettings] = InBatchSettings()

    @property
    def needs_rows(self) -> bool:
        return not self.data

    @property
    def uses(self) -> Sequence[str]:
        return () if self.start in (None, BASE) else (str(self.start),)

    @model_validator(mode="after")
    def _rounds_mine(self) -> Self:
        corpus = self.round_corpus or (self.mining and isinstance(self.mining.retriever, IndexedSettings))
        if self.rounds > 1 and (self.mining is None or not corpus):
            raise ValueError("rounds above 1 need a mining section, and round_corpus or an index with its corpus")
        return self


class MergeStageSettings(StageSettings):
    """One encoder of the weights of several, which must be of one shape (Wortsman et al. 2022).

    ``linear`` is their weighted mean; ``slerp`` goes along the arc between two after the other (Shoemake 1985).
    """

    kind: Literal["merge"] = "merge"
    parts: Annotated[list[str], Field(min_length=2)]
    """Names of earlier stages."""
    method: Literal["linear", "slerp"] = "linear"
    weights: list[Rate] | Literal["dev"] | None = None
    """One for each. dev: its figure on ``evaluation``. None: equal ones."""

    @property
    def uses(self) -> Sequence[str]:
        return self.parts

    @property
    def needs_evaluation(self) -> bool:
        return self.weights == "dev"

    @model_validator(mode="after")
    def _weights_fit(self) -> Self:
        twice = next((name for name in self.parts if self.parts.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is merged with itself: name each part once, and give it a larger weight")
        if isinstance(self.weights, list) and len(self.weights) != len(self.parts):
            raise ValueError(f"{len(self.weights)} weights are given for {len(self.parts)} stages")
        return self


class RerankerStageSettings(StageSettings):
    """Trains a reranker from rows of its own or the run's; the stages after it go on from the encoder before it.

    It lies in ``stage-N/reranker``: a later stage learns its scores by ``mining.teacher``.
    """

    kind: Literal["reranker"] = "reranker"
    reranker: RerankerSettings
    data: list[SourceSettings] = Field(default_factory=list)
    mining: MiningSettings | None = None

    @property
    def needs_rows(self) -> bool:
        return not self.data

    @property
    def makes_encoder(self) -> bool:
        return False
