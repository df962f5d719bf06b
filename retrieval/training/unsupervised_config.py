"""Settings of LLM2Vec's two stages without labels (BehnamGhader et al. 2024). Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from hub.config import EncoderLoraSettings
from retrieval.training.config import TrainingSettings
from sleuth.settings import Share


class TextTraining(TrainingSettings):
    """Learns from the texts of the rows alone: each passage and each query once, whatever belongs to what.

    A step takes ``batch_size`` texts over all ranks.
    """

    lora: EncoderLoraSettings | None = None


class MntpSettings(TextTraining):
    """Masked next-token prediction: a masked token is predicted from the state before it."""

    STARTER: ClassVar[str] = "retrieval.training.unsupervised:mntp"

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

    kind: Literal["simcse"] = "simcse"
    dropout: Share | None = 0.3
    """Of attention, and of every dropout layer but LoRA's; None: as the backbone has it."""
