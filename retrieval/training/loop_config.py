"""Settings of the training loop, the same for encoders and rerankers. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sleuth.settings import Count, Rate, Settings, Share

NotNegative = Annotated[int, Field(ge=0)]


class LoopSettings(Settings):
    """How long is trained, by which optimizer (AdamW), and what is kept."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: forward passes under autocast."""
    steps: Count | None = None
    epochs: Rate = 1.0
    """Passes through the rows, where ``steps`` does not say."""
    learning_rate: Rate = 2e-5
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    warmup_steps: NotNegative = 0
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    max_grad_norm: Rate = 1.0
    log_steps: Count = 10
    save_steps: Count = 100
    keep_checkpoints: Count = 2
