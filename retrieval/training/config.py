"""Settings of training encoders and rerankers. Imports nothing heavy.

Presets are published recipes; every key beside one replaces its value::

    training: {preset: repllama, batch_size: 32}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializeAsAny, model_validator

from hub.config import EncoderLoraSettings
from retrieval.config import IndexedSettings
from retrieval.training.augmentation_config import AugmentationSettings
from retrieval.training.loop_config import LoopSettings, NotNegative
from retrieval.training.loss_config import Batches, Direction, DistillationSettings, HardnessSettings, ReadingSettings
from retrieval.training.mining_config import MiningSettings
from retrieval.training.presets import PRESETS
from retrieval.training.rerankers.config import RerankerSettings
from retrieval.training.start_config import EncoderStart
from sleuth.errors import did_you_mean
from sleuth.kinds import KindSettings
from sleuth.settings import Count, Rate, Settings, Share

Layout = Literal["tevatron", "colpali", "beir", "hotpotqa", "musique", "cloze", "title_body"]


class SourceSettings(Settings):
    """Rows to train on. ``layout`` None: told from the first row; a folder is BEIR, of which ``split`` is read.

    cloze and title_body take a corpus and have to be named.
    """

    path: str
    layout: Layout | None = None
    split: str = "train"
    corpus: str | None = None
    """BEIR: passages, if not the folder's own. Releases: passages whose ids are used where title and text are equal."""
    limit: Count | None = None
    cap: Count | None = None
    """At most so many rows, drawn from all of them, where ``limit`` takes the first."""
    weight: Rate | None = None
    """Of the source in the mixture: batches hold it in this proportion to others, however many rows it has. What does
    not come out even in one batch does so over several. None: 1 where another source has a weight, else each row counts
    alike. Of a single source it changes nothing."""
    instruction: str = ""
    """What queries ask for, in rows that do not say it themselves: it takes the place of the instruction in the
    encoder's ``query_prompt``."""


class RegulariserSettings(Settings):
    """FLOPS regularisation of sparse encoders: larger weights, fewer words a text (Formal et al. 2021)."""

    query: Annotated[float, Field(ge=0)] = 3e-4
    passage: Annotated[float, Field(ge=0)] = 1e-4
    ramp: Share = 1 / 3
    """Share of the steps over which the weights rise from 0, with the square of the step."""


class TrainingSettings(LoopSettings, KindSettings):
    """What training minimises, InfoNCE in one of its kinds, and its optimizer.

    A step takes ``batch_size`` queries over all ranks, each with one positive and up to ``hard_negatives``.
    ``micro_batch`` texts are in memory at once by gradient caching; None: the whole batch in one pass.
    ``train: both`` and ``train: query`` are other words for the kinds.
    """

    NOUN: ClassVar[str] = "training objective"
    SAVED_TOGETHER: ClassVar[bool] = True
    KINDS: ClassVar[Mapping[str, str]] = {
        "in_batch": "retrieval.training.config:InBatchSettings",
        "frozen_passages": "retrieval.training.config:FrozenSettings",
        "mntp": "retrieval.training.unsupervised_config:MntpSettings",
        "simcse": "retrieval.training.unsupervised_config:SimcseSettings",
    }
    STARTER: ClassVar[str]
    """Dotted path of what readies an encoder and makes the objective of this kind: `retrieval.training.start`."""

    preset: str | None = None
    batch_size: Annotated[int, Field(ge=2)] = 64
    hard_negatives: NotNegative = 1
    micro_batch: Count | None = None
    temperature: Rate = 0.05
    mask_margin: float | None = None
    """Passages scoring above positive + this are masked; below 0 it masks those that come near it. None: none."""
    batches: Batches = "mixed"
    """one_source: all rows of a batch are from one source, so that negatives cannot be told by their set alone."""
    directions: tuple[Direction, ...] = ("query_to_passage",)
    """What finds what: passage_to_query makes the loss symmetric, all four are GTE's."""
    partition: Literal["joint", "per_direction"] = "joint"
    """One softmax over the candidates of all directions, or the mean of one each."""
    hardness: HardnessSettings | None = None
    """Negatives weigh the more the higher they score."""
    distillation: DistillationSettings | None = None
    """Also learn the scores of a teacher, which rows carry."""
    reading: ReadingSettings | None = None
    """Also learn to read the letters of pages."""
    dimensions: list[Count] = Field(default_factory=list)
    """Matryoshka: sizes to which a vector may be cut later."""
    regulariser: RegulariserSettings | None = None
    """Of sparse encoders; None: the usual one for SPLADE, none for others."""

    @model_validator(mode="after")
    def _directions_fit(self) -> TrainingSettings:
        if "query_to_passage" not in self.directions or len(set(self.directions)) < len(self.directions):
            raise ValueError("directions must hold query_to_passage, and each of them once")
        alike = sorted(set(self.directions) & {"query_to_query", "passage_to_passage"})
        if self.partition == "per_direction" and alike:
            raise ValueError(f"{alike[0]} has no right candidate of its own; it needs partition: joint")
        return self

    @model_validator(mode="after")
    def _has_hard_negatives(self) -> TrainingSettings:
        if not self.hard_negatives and self.distillation:
            raise ValueError("distillation compares a query's positive with its hard negatives; hard_negatives is 0")
        if not self.hard_negatives and self.hardness and self.hardness.mode == "hard_negatives":
            raise ValueError("hardness of hard_negatives does nothing while hard_negatives is 0")
        return self

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        """With the values of its preset, and with the kind that ``train`` stands for."""
        if not isinstance(value, Mapping):
            return value
        name = value.get("preset")
        if name is not None and str(name) not in PRESETS:
            raise ValueError(f"no training preset; {did_you_mean(str(name), PRESETS)}")
        values = {**PRESETS.get(str(name), {}), **value}
        if "train" not in values:
            return {"kind": "in_batch", **values}
        train = values.pop("train")
        if str(train) not in _TOWERS:
            raise ValueError(f"train is {train!r}; {did_you_mean(str(train), _TOWERS)}")
        kind = _TOWERS[str(train)]
        if values.get("kind", kind) != kind:
            raise ValueError(f"train: {train} stands for kind {kind}, not {values['kind']}; leave train out")
        return {**values, "kind": kind}


_TOWERS = {"both": "in_batch", "query": "frozen_passages"}


class InBatchSettings(TrainingSettings):
    """Both towers learn, and the passages of a batch are negatives of each other's queries."""

    STARTER: ClassVar[str] = "retrieval.training.start:in_batch"

    kind: Literal["in_batch"] = "in_batch"
    lora: EncoderLoraSettings | None = None


class FrozenSettings(TrainingSettings):
    """The query tower learns alone; passage vectors, and an index of them, stay as they are.

    It takes no adapter: the frozen tower would share the adapter's backbone.
    """

    STARTER: ClassVar[str] = "retrieval.training.start:frozen_passages"

    kind: Literal["frozen_passages"] = "frozen_passages"
    against: Literal["batch", "all"] = "batch"
    """Passages of the softmax; all: every passage of rows, dev set and ``index``."""
    index: Path | None = None
    """A flat dense index made with the same passage tower: its vectors are taken, not worked out again."""

    @model_validator(mode="after")
    def _passages_stay(self) -> FrozenSettings:
        if "passage_to_passage" in self.directions:
            raise ValueError("passage_to_passage trains passages, which stay as they are here; leave it out")
        return self


class DevSettings(Settings):
    """Judged queries that training is watched on: a BEIR folder's split, searched over some of its passages."""

    path: str
    split: str = "dev"
    corpus: str | None = None
    instruction: str = ""
    """Of queries that have none of their own; empty: the encoder's query prompt as it is."""
    queries: Count | None = None
    """The first so many; None: all."""
    beside: list[str] | None = None
    """Without a corpus: rows whose passages are searched too; None: those of the training rows."""
    passages: Count | None = None
    """Passages searched: the golds of the queries and a seeded sample of others; None: the whole corpus."""
    every: Count = 100
    k: Count = 5
    metric: Literal["recall", "all_gold", "ndcg10"] = "recall"
    """The figure that chooses the best checkpoint."""
    patience: NotNegative = 0
    """Evaluations without a better figure after which training stops; 0: never."""

    def changed(self, *names: str) -> str | None:
        """The first of ``names`` that is not at its default."""
        default = type(self).model_fields
        return next((name for name in names if getattr(self, name) != default[name].default), None)


class IndexSettings(Settings):
    """Encode a corpus with the trained encoder into a dense index, and measure it there."""

    path: Path
    corpus: str
    evaluate: DevSettings | None = None


class StageSettings(KindSettings):
    """One stage of several: a training (the kind where none is named), a merge of encoders, or a reranker."""

    NOUN: ClassVar[str] = "stage"
    KINDS: ClassVar[Mapping[str, str]] = {
        "train": "retrieval.training.stages_config:TrainStageSettings",
        "merge": "retrieval.training.stages_config:MergeStageSettings",
        "reranker": "retrieval.training.stages_config:RerankerStageSettings",
    }

    name: str
    evaluation: DevSettings | None = None
    """Watches this stage; the last one has the run's where it names none, a reranker if it has a ``first_stage``."""

    @classmethod
    def spelled_out(cls, value: Any) -> Any:
        return {"kind": "train", **value} if isinstance(value, Mapping) else value

    @property
    def needs_rows(self) -> bool:
        """Whether it learns from the run's rows, having none of its own."""
        return False

    @property
    def uses(self) -> Sequence[str]:
        """Names of earlier stages whose encoders it starts from."""
        return ()

    @property
    def makes_encoder(self) -> bool:
        return True

    @property
    def needs_evaluation(self) -> bool:
        """Whether it does nothing without an evaluation, of its own or, where it is the last stage, of the run."""
        return False


class RetrieverTraining(Settings):
    """One training run of an encoder or a reranker. ``rounds`` above 1 mines again with the encoder trained so far.

    With ``augmentation`` there is a round a stage of teachers, and nothing is mined.
    """

    out: Path
    kind: Literal["encoder", "reranker"] = "encoder"
    seed: int = 0
    threads: Count | None = None
    encoder: EncoderStart | None = None
    reranker: RerankerSettings | None = None
    data: list[SourceSettings] = Field(default_factory=list)
    stages: list[SerializeAsAny[StageSettings]] = Field(default_factory=list)
    """Trained one after the other, adapters merged between; each has its own training, and may have its own data."""
    mining: MiningSettings | None = None
    augmentation: AugmentationSettings | None = None
    rounds: Count = 1
    round_corpus: str | None = None
    """Passages that later rounds mine from; None: those that the mining retriever was made from."""
    training: SerializeAsAny[TrainingSettings] = InBatchSettings()
    evaluation: DevSettings | None = None
    index: IndexSettings | None = None
    merge_adapter: bool = False
    """Add a LoRA adapter to the weights at the end. Stages and bidirectional backbones always do."""

    @property
    def last_round(self) -> int:
        return len(self.augmentation.stages) if self.augmentation else self.rounds

    @property
    def mining_corpus(self) -> str | Path | None:
        """Passages that rounds after the first mine from."""
        retriever = self.mining.retriever if self.mining else None
        return self.round_corpus or (retriever.corpus if isinstance(retriever, IndexedSettings) else None)

    @model_validator(mode="after")
    def _stages_have_all(self) -> RetrieverTraining:
        if self.stages and (self.training != InBatchSettings() or self.mining or self.rounds > 1 or self.round_corpus):
            raise ValueError(
                "training, mining, rounds and round_corpus do nothing beside stages: set them in the stages"
            )
        if self.stages and self.augmentation:
            raise ValueError("augmentation has stages of its own; leave stages out")
        names = [stage.name for stage in self.stages]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two stages are called '{twice}', so their records could not be told apart")
        made: list[str] = []
        for stage in self.stages:
            unknown = next((name for name in stage.uses if name not in made), None)
            if unknown is not None:
                raise ValueError(
                    f"stage {stage.name} starts from '{unknown}', an encoder that no stage before it makes"
                )
            made += [stage.name] if stage.makes_encoder else []
            if stage.needs_evaluation and not (stage.evaluation or (stage is self.stages[-1] and self.evaluation)):
                raise ValueError(f"stage {stage.name}: weights: dev needs an evaluation: give the stage one")
        if self.stages and not made:
            raise ValueError("no stage makes an encoder")
        if self.stages and self.kind == "reranker":
            raise ValueError("a reranker is not trained in stages; leave stages out")
        return self

    @model_validator(mode="after")
    def _has_its_section(self) -> RetrieverTraining:
        if getattr(self, self.kind) is None:
            raise ValueError(f"kind {self.kind} needs a section '{self.kind}'")
        self._has_queries()
        idle = self._idle()
        if idle:
            raise ValueError(f"{idle} does nothing for kind {self.kind}; leave it out")
        if self.rounds > 1 and (self.kind != "encoder" or self.mining is None):
            raise ValueError("rounds above 1 need an encoder and a mining section")
        if self.rounds > 1 and self.mining_corpus is None:
            raise ValueError("rounds above 1 need round_corpus, or mining.retriever.corpus")
        return self

    def _idle(self) -> str | None:
        """The first setting that says something and that nothing reads."""
        if self.kind == "encoder":
            return "reranker" if self.reranker else self._idle_in_index()
        assert self.reranker is not None
        dev = self.evaluation
        idle = {
            "encoder": self.encoder,
            "index": self.index,
            "training": self.training != InBatchSettings(),
            "round_corpus": self.round_corpus,
            "evaluation.beside": dev and dev.beside,
            "evaluation.passages": dev and dev.passages,
            "reranker.first_stage, without evaluation,": self.reranker.first_stage and not dev,
        }
        return next((name for name, given in idle.items() if given), None)

    def _idle_in_index(self) -> str | None:
        """Settings of the dev set that are of use only while training."""
        dev = self.index.evaluate if self.index else None
        idle = dev and dev.changed("beside", "passages", "every", "metric", "patience")
        return f"index.evaluate.{idle}" if idle else None

    def _has_queries(self) -> None:
        augmented = self.augmentation
        staged = bool(self.stages) and not any(stage.needs_rows for stage in self.stages)
        if not self.data and not staged and not (augmented and (augmented.crops or augmented.queries)):
            more = ", augmentation.queries or augmentation.crops" if augmented else ""
            more += ", for the run or for each of its stages" if self.stages else ""
            raise ValueError(f"there are no queries to train on: give data{more}")
        other = {"stages": self.stages, "mining": self.mining, "rounds": self.rounds > 1}
        useless = next((name for name, given in other.items() if given), None)
        if augmented and (useless or self.kind != "encoder"):
            useless = useless or f"kind {self.kind}"
            raise ValueError(f"{useless} goes not with augmentation, whose teachers give an encoder its negatives")
        if augmented and self.training.distillation:
            raise ValueError("training.distillation goes not with augmentation, whose labels are ranks without scores")
