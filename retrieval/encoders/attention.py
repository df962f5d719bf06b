"""Bidirectional attention in a decoder: a setting of its configuration, which sentence-transformers reads too.

transformers leaves the causal mask out where a config has ``is_causal: false`` (Llama, Qwen, Mistral, SmolLM) or
``use_bidirectional_attention: true`` (Gemma). Whether a family obeys is tried out, not looked up.
"""

from __future__ import annotations

from typing import Any

import torch

from sleuth.errors import ArtifactError

_GEMMAS = "use_bidirectional_attention"


def is_bidirectional(config: Any) -> bool:
    """Whether the configuration of a decoder says that it reads in both directions."""
    return getattr(config, "is_causal", True) is False or bool(getattr(config, _GEMMAS, False))


def make_bidirectional(backbone: Any, name: str) -> None:
    """Let every state of ``backbone`` depend on all tokens. Raises ArtifactError where its architecture does not."""
    backbone.config.is_causal = False
    if hasattr(backbone.config, _GEMMAS):
        setattr(backbone.config, _GEMMAS, True)
    for module in backbone.modules():
        if isinstance(getattr(module, "is_causal", None), bool):
            module.is_causal = False
    if not _looks_ahead(backbone):
        raise ArtifactError(
            f"{name} is a {backbone.config.model_type}, whose attention stays causal in transformers",
            "leave attention out, or choose a Llama, Qwen2, Qwen3, Mistral, Gemma or SmolLM",
        )


def _looks_ahead(backbone: Any) -> bool:
    """Whether the first state changes with the last token."""
    last = int(backbone.config.vocab_size) - 1
    ids = torch.tensor([[last // 2, 1, last // 3, 2], [last // 2, 1, last // 3, last]], device=backbone.device)
    training = backbone.training
    backbone.eval()
    with torch.no_grad():
        states = backbone(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, 0].float()
    backbone.train(training)
    return bool((states[0] - states[1]).abs().max() > 1e-6 * states.abs().max())
