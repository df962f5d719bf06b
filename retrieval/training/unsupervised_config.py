"""Settings of LLM2Vec's two stages without labels (BehnamGhader et al. 2024). Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from hub.config import EncoderLoraSettings
from retrieval.training.config import TrainingSettings
from sleuth.settings import Share


class TextTraining(TrainingSettings):
    """Learns from the texts of the rows alone: each passage and each query once, whatever belongs to what.

    A step takes ``batch_size`` texts over all ranks.
    """

    IDLE: ClassVar[tuple[str, ...]]
    """Settings of all objectives that mean nothing to this one."""

    lora: EncoderLoraSettings | None = None

    @model_validator(mode="after")
    def _nothing_is_idle(self) -> Self:
        fields = type(self).model_fields
        for name in self.IDLE:
            if getattr(self, name) != fields[name].get_default(call_default_factory=True):
                raise ValueError(f"{name} does nothing for a training objective of kind {self.kind}; leave it out")
        return self


class MntpSettings(TextTraining):
    """Masked next-token prediction: a masked token is predicted from the state before it."""

    STARTER: ClassVar[str] = "retrieval.training.unsupervised:mntp"
    IDLE: ClassVar[tuple[str, ...]] = (
        *("hard_negatives", "batches", "distillation", "regulariser", "temperature", "mask_margin"),
        *("directions", "partition", "hardness", "dimensions"),
    )

    kind: Literal["mntp"] = "mntp"
    mask_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of a text's tokens that are masked."""
    mask_token: str | None = None
    """None: the tokenizer's own, or "_" where it has none."""
    head: Literal["own", "tied"] = "own"
    """What tells tokens from states: the backbone's own head, or its input embeddings."""


class SimcseSettings(TextTraining):
    """Unsupervised SimCSE: a text must find itself among a batch, encoded again under another dropout."""

    STARTER: ClassVar[str] = "retrieval.training.unsupervised:simcse"
    IDLE: ClassVar[tuple[str, ...]] = ("hard_negatives", "batches", "distillation", "regulariser")

    kind: Literal["simcse"] = "simcse"
    dropout: Share | None = 0.3
    """Of attention, and of every dropout layer but LoRA's; None: as the backbone has it."""
