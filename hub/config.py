"""Settings that policies and encoders share. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sleuth.settings import Count, Settings, Share


class LoraSettings(Settings):
    """A low-rank adapter (Hu et al. 2021) on all projections, through peft.

    Without dropout: the log-probs in the update must be those that the policy sampled with.
    """

    r: Count = 16
    alpha: Count = 32
    dropout: Share = 0.0
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = "all-linear"


class EncoderLoraSettings(LoraSettings):
    """RepLLaMA's settings for an encoder (Ma et al. 2023): a higher alpha, and dropout."""

    alpha: Count = 64
    dropout: Share = 0.1
