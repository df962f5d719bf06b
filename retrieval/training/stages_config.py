"""Settings of the kinds of stages, and of each as a run of its own. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationError, model_validator

from retrieval.training.config import (
    DevSettings,
    InBatchSettings,
    RetrieverTraining,
    SourceSettings,
    StageSettings,
    TrainingSettings,
)
from retrieval.training.mining_config import MiningSettings
from retrieval.training.rerankers.config import RerankerSettings
from retrieval.training.start_config import EncoderStart
from sleuth.layout import RetrieverRunLayout
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
    def _says_what_is_read(self) -> Self:
        twice = next((name for name in self.parts if self.parts.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is merged with itself: name each part once, and give it a larger weight")
        if isinstance(self.weights, list) and len(self.weights) != len(self.parts):
            raise ValueError(f"{len(self.weights)} weights are given for {len(self.parts)} stages")
        idle = self.evaluation and self.evaluation.changed("every", "patience")
        if idle:
            raise ValueError(f"evaluation.{idle} does nothing for a merge, which takes no steps; leave it out")
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


def as_runs(whole: RetrieverTraining) -> list[RetrieverTraining]:
    """The settings of each stage as a run of its own in ``stage-N``. Raises ValueError for one that could not be."""
    layout = RetrieverRunLayout(whole.out)
    made: list[RetrieverTraining] = []
    encoders: dict[str, Path] = {}
    for number, stage in enumerate(whole.stages, start=1):
        values = {
            **{name: getattr(whole, name) for name in ("seed", "threads", "data")},
            "out": layout.stage(number).out,
            "encoder": _start(whole, stage, encoders),
            "evaluation": _evaluation(whole, stage),
            "merge_adapter": True,
        }
        made.append(_as_run(stage, values))
        if stage.makes_encoder:
            encoders[stage.name] = layout.stage(number).encoder
    return made


def _as_run(stage: StageSettings, values: dict[str, Any]) -> RetrieverTraining:
    if isinstance(stage, TrainStageSettings | RerankerStageSettings):
        values |= {"data": stage.data or values["data"], "mining": stage.mining}
    if isinstance(stage, TrainStageSettings):
        values |= {"rounds": stage.rounds, "round_corpus": stage.round_corpus, "training": stage.training}
    if isinstance(stage, RerankerStageSettings):
        values |= {"kind": "reranker", "reranker": stage.reranker, "encoder": None}
    if isinstance(stage, MergeStageSettings):
        return RetrieverTraining.model_construct(**values)  # learns from no rows, which a run has to have
    try:
        return RetrieverTraining.model_validate(values)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ValueError(f"stage {stage.name}: {said}") from None


def _start(whole: RetrieverTraining, stage: StageSettings, encoders: Mapping[str, Path]) -> EncoderStart | None:
    """The encoder that a stage trains: of the stage that it names, of the last one that made any, or the run's.

    A random backbone of the run is made once, for all stages that start from it.
    """
    name = stage.start if isinstance(stage, TrainStageSettings) else None
    if encoders and name != BASE:
        return EncoderStart(backbone=str(encoders[name] if name else list(encoders.values())[-1]))
    if whole.encoder is None or whole.encoder.scratch is None:
        return whole.encoder
    made = str(RetrieverRunLayout(whole.out).backbone)
    return whole.encoder.model_copy(update={"scratch": None, "scratch_corpus": None, "backbone": made})


def _evaluation(whole: RetrieverTraining, stage: StageSettings) -> DevSettings | None:
    """The stage's own, or the run's for the last one; a reranker can use that where it has hits to rank."""
    run = whole.evaluation if stage is whole.stages[-1] else None
    if stage.evaluation or run is None or not isinstance(stage, RerankerStageSettings):
        return stage.evaluation or run
    ranked = stage.reranker.first_stage is not None
    return run.model_copy(update={"beside": None, "passages": None}) if ranked else None
