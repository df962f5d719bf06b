"""The settings of a run: one YAML file with a section for each package. Imports without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from agent.cluster.config import ClusterSettings
from agent.config import (
    EvaluationSettings,
    GrpoSettings,
    PolicySettings,
    WarmstartSettings,
)
from agent.demonstration_config import DemonstrationSettings
from envs.config import EnvironmentSettings
from envs.toy_world.config import WorldSettings
from retrieval.config import AnyRetriever
from rewards.config import AnyReward, RewardSettings
from sleuth.settings import Draw, Settings, apply_override, change_strings, read_layers, validate

Gold = Literal["id", "title"]


class SourceSettings(Settings):
    """A file of training questions and its weight in the mixture.

    ``kinds`` keeps only questions of these kinds, ``max_answer_words`` those whose first accepted answer, the one that
    a demonstration gives, has at most so many words. ``limit`` keeps the first of those left, or with ``draw: seeded``
    some from all over the file, by the run's seed; fewer are a part of more.
    """

    path: str
    weight: Annotated[float, Field(gt=0.0)] = 1.0
    kinds: Annotated[list[str], Field(min_length=1)] | None = None
    max_answer_words: Annotated[int, Field(ge=1)] | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    draw: Draw = "first"


class DataSettings(Settings):
    """Question files: for training, for choosing a checkpoint, and for the reported metrics.

    ``leaks``: training questions, and demonstrations, that share a gold passage or a gold title with any question of
    ``dev`` or ``test`` are dropped, or kept. ``repeats``: those with the id or the text of one of them are dropped, or
    kept, since ids of two files may be the same by chance. ``gold``: gold passages are known by id where questions list
    ids, or by title throughout, as for a corpus with other ids. ``dev_max_answer_words`` keeps the dev questions with a
    first answer of at most so many words, in every stage of a run; where a stage asks a limited number of them,
    ``dev_draw: seeded`` takes them from all over the file, by the run's seed.
    """

    train: list[SourceSettings] = Field(default_factory=list)
    dev: str | None = None
    dev_max_answer_words: Annotated[int, Field(ge=1)] | None = None
    dev_draw: Draw = "first"
    test: str | None = None
    leaks: Literal["drop", "keep"] = "drop"
    repeats: Literal["drop", "keep"] = "keep"
    gold: Gold = "id"


class RunSettings(Settings):
    """All settings of a run. ``{out}`` in any string but a prompt stands for the run folder."""

    out: Path
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    threads: Annotated[int, Field(ge=1)] | None = None
    world: WorldSettings | None = None
    policy: PolicySettings
    environment: EnvironmentSettings = EnvironmentSettings()
    retriever: AnyRetriever | None = None
    rewards: list[AnyReward] = Field(default_factory=lambda: [RewardSettings.of(kind="exact_match")])
    data: DataSettings = DataSettings()
    demonstrations: DemonstrationSettings | None = None
    warmstart: WarmstartSettings | None = None
    grpo: GrpoSettings | None = None
    evaluation: EvaluationSettings = EvaluationSettings()
    cluster: ClusterSettings | None = None
    sinks: list[Literal["console", "jsonl", "tensorboard"]] = ["console", "jsonl"]  # noqa: RUF012 - settings are frozen and copied

    @model_validator(mode="after")
    def _judge_is_there(self) -> RunSettings:
        ahead = self.cluster is not None and self.cluster.schedule == "async"
        if ahead and self.grpo and self.grpo.oversample > 1 and getattr(self.grpo.credit, "needs_model", False):
            raise ValueError(
                "grpo.oversample replaces groups while the model that judges their turns is busy: with cluster.schedule"
                " async set grpo.oversample to 1, or grpo.credit.score to gold_found"
            )
        return self


def load_run_settings(path: str | Path, overrides: Sequence[str] = (), out: Path | None = None) -> RunSettings:
    """The run settings of a YAML file with ``key=value`` overrides; ``out`` replaces the run folder.

    A section ``cotrain`` is left to what reads it (`workflows.cotrain`): the rest is a run like any other. Raises
    ConfigError naming the file, the key and what to write instead.
    """
    values = read_layers(Path(path))
    for override in overrides:
        apply_override(values, override)
    if out is not None:
        values["out"] = str(out)
    values.pop("cotrain", None)
    return validate(RunSettings, fill_out(values), str(path))


def fill_out(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``{out}`` replaced by the run folder, if they name one; prompts are taken as they are."""
    folder = values.get("out")
    if not folder:
        return values
    filled: dict[str, Any] = change_strings(values, lambda text, _: text.replace("{out}", str(folder)))
    return filled


def modes_of(settings: RunSettings) -> Sequence[Any]:
    """The modes to evaluate in after a stage; a third-party environment is run only as itself, as mode search."""
    kind = settings.environment.kind
    own = "search" if ":" in kind else kind
    return [own] if settings.evaluation.modes is None else settings.evaluation.modes
