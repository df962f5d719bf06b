"""Export a trained policy as one plain folder: adapters merged, tokenizer beside the weights."""

from __future__ import annotations

from pathlib import Path

from agent.codec import HFCodec
from agent.config import PolicySettings


def save_merged(settings: PolicySettings, source: str, folder: Path) -> HFCodec:
    """Write weights (in ``settings.dtype``) and tokenizer of the policy at ``source`` to ``folder``; returns its codec.

    An adapter is merged into its base model; the result needs neither.
    """
    from agent.policies.loading import load_policy_model

    model, codec = load_policy_model(settings.model_copy(update={"device": "cpu"}), source)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    model.config.use_cache = True  # training may have switched it off
    model.save_pretrained(folder)
    codec.save(folder)
    return codec
