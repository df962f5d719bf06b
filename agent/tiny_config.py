"""Settings of the tiny policy that is trained from scratch."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from sleuth.settings import Settings


class TinySettings(Settings):
    """Shape of the network. The initialisation needs two layers and three heads at least."""

    hidden_size: int = Field(128, ge=32)
    layers: int = Field(4, ge=2)
    heads: int = Field(4, ge=3)
    intermediate_size: int = Field(344, ge=8)
    max_length: int = Field(1024, ge=16)
    """Longest transcript, tokens."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError("hidden_size must be heads times an even number")
        return self
