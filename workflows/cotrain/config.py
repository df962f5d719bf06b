"""Settings of co-training: a run's settings with a section ``cotrain``. Imports without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from agent.labelling.config import AnyLabels, OutcomeSettings
from retrieval.training.config import DevSettings, InBatchSettings, SourceSettings, TrainingSettings
from retrieval.training.mining_config import MiningSettings
from retrieval.training.rerankers.config import RerankerSettings
from sleuth.query_forms import QueryForm
from sleuth.settings import Count, Rate, Settings, Share, apply_override, read_layers, validate
from workflows.config import RunSettings, fill_out
from workflows.cotrain.families import learner_of
from workflows.retriever_training import RetrieverRun


class StartSettings(RetrieverRun):
    """A training of the first retriever, as `sleuth train-retriever` reads it; its folder is ``{out}/retriever-0``.

    ``seed`` and ``threads`` are the run's where it names none.
    """

    out: Path = Path("retriever-0")

    @model_validator(mode="after")
    def _lies_in_the_run(self) -> StartSettings:
        for name in ("out", "world"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} does nothing in cotrain.start, which is a part of the run: leave it out")
        return self


class LearningSettings(Settings):
    """How the retriever learns from a round's rows, from the weights of the round before.

    ``rows``: further rows that are read beside them, such as judged ones. A reranker takes ``reranker`` (its
    ``backbone``, which may be left out, is the round's), an encoder ``training``, ``mining`` and ``evaluation``.
    """

    training: SerializeAsAny[TrainingSettings] = InBatchSettings()
    reranker: RerankerSettings | None = None
    mining: MiningSettings | None = None
    evaluation: DevSettings | None = None
    rows: list[SourceSettings] = Field(default_factory=list)

    @field_validator("reranker", mode="before")
    @classmethod
    def _of_the_round(cls, values: object) -> object:
        return {"backbone": "that of the round before"} | values if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _one_of_them_learns(self) -> LearningSettings:
        if self.reranker is not None and self.training != InBatchSettings():
            raise ValueError("training does nothing beside reranker, which has the settings of its own training")
        return self


class GuardSettings(Settings):
    """What keeps a round from doing harm.

    ``tolerance``: how much of the answer recall on held-out searches (those of the agent on dev questions) a new
    retriever may lose and still be swapped in. The others are watched, and a warning says when they are passed:
    ``min_distinct``: distinct queries to a question asked; ``max_copied``: share of queries that only say the question
    again; ``max_repeated``: share that ask what their episode has asked.
    """

    tolerance: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    k: Count = 5
    """Hits in which an answer must stand."""
    min_distinct: Annotated[float, Field(ge=0.0)] = 0.5
    max_copied: Share = 0.9
    max_repeated: Share = 0.5


class CotrainSettings(Settings):
    """Rounds of rollouts, rows, retriever training, index, agent training and evaluation.

    A round plays ``questions`` training questions ``group_size`` times at ``temperature``. ``retriever`` None: it
    stays as it is; ``agent: frozen``: the policy does. With ``earlier_rows`` the rows of all rounds so far train.
    ``judged``: judged queries on which the retriever is measured every round, for people alone.
    """

    rounds: Count = 2
    questions: Count = 256
    group_size: Annotated[int, Field(ge=2)] = 8
    temperature: Rate = 1.0
    query_form: QueryForm = "query"
    labels: AnyLabels = OutcomeSettings()
    earlier_rows: bool = True
    start: StartSettings | None = None
    retriever: LearningSettings | None = LearningSettings()
    agent: Literal["grpo", "frozen"] = "grpo"
    guards: GuardSettings = GuardSettings()
    judged: DevSettings | None = None

    @model_validator(mode="after")
    def _something_learns(self) -> CotrainSettings:
        if self.retriever is None and self.agent == "frozen":
            raise ValueError("nothing learns: give a section retriever, or set agent to grpo")
        return self


class CotrainRun(RunSettings):
    """A run whose agent and retriever learn in turns."""

    cotrain: CotrainSettings = CotrainSettings()

    @model_validator(mode="after")
    def _fits(self) -> CotrainRun:
        chosen = self.cotrain
        if self.retriever is None:
            raise ValueError("co-training needs a retriever: set retriever to an index of encoded passages")
        if chosen.agent == "grpo" and self.grpo is None:
            raise ValueError("cotrain.agent grpo needs a section grpo; or set cotrain.agent to frozen")
        if not self.data.train or self.data.dev is None:
            raise ValueError("co-training needs data.train and data.dev")
        if chosen.retriever is not None:
            learner_of(self.retriever, chosen.retriever.reranker is not None)
        own = chosen.start.encoder.settings.get("query_form") if chosen.start and chosen.start.encoder else None
        if own not in (None, chosen.query_form):
            raise ValueError(
                f"cotrain.start has query_form {own}, and cotrain has {chosen.query_form}: set that of cotrain alone"
            )
        return self


def load_cotrain_run(path: str | Path, overrides: Sequence[str] = (), out: Path | None = None) -> CotrainRun:
    """The settings of a YAML file with ``key=value`` overrides. Raises ConfigError naming what to fix."""
    values = read_layers(Path(path))
    for override in overrides:
        apply_override(values, override)
    if out is not None:
        values["out"] = str(out)
    return validate(CotrainRun, fill_out(values), str(path))
