"""Tiny untrained policies of other families, to try without a download how a family is sampled from and trained.

Their weights are random and large, biases included: padding that a layer takes for tokens then moves log-probs by
tenths of nats, not by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from agent.tiny import KIND, make_tokenizer
from sleuth.artifacts import atomic_folder, write_manifest

_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
_DELTA = _ATTENTION | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_hidden_layers": 4,
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
_MAMBA |= {"num_attention_heads": 4, "num_key_value_heads": 2}

HYBRIDS: Mapping[str, Mapping[str, Any]] = {
    "qwen3_5_text": _DELTA,
    "qwen3_next": _DELTA | _EXPERTS | {"num_experts": 4},
    "lfm2": _ATTENTION | {"layer_types": ["conv", "full_attention"] * 2, "num_hidden_layers": 4},
    "granitemoehybrid": _MAMBA
    | {"layer_types": ["mamba", "attention"] * 2, "num_hidden_layers": 4, "num_local_experts": 4}
    | {"num_experts_per_tok": 2, "shared_intermediate_size": 16},
    "falcon_h1": _MAMBA | {"mamba_d_ssm": 64, "head_dim": 8, "num_hidden_layers": 2},
    "nemotron_h": _ATTENTION
    | {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16}
    | {"hybrid_override_pattern": "M*-M*-", "num_hidden_layers": 6},
}
"""Families with full attention in some layers and a recurrent state in others; settings beside the common ones."""
WINDOWED: Mapping[str, Mapping[str, Any]] = {
    "gemma3_text": _ATTENTION
    | {"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2, "sliding_window": 8},
    "mistral": _ATTENTION | {"num_hidden_layers": 2, "sliding_window": 8},
}
"""Families whose attention looks back over a window, here of 8 tokens."""
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"state_size": 8, "num_hidden_layers": 2},
    "recurrent_gemma": {"num_attention_heads": 4, "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16},
}
"""Absolute positions; recurrent layers whose rows cannot be batched."""
FAMILIES = {**HYBRIDS, **WINDOWED, **OTHERS}


def build_tiny_family(
    folder: str | Path, vocabulary: Sequence[str], family: str, seed: int = 0, *, context: int = 1024
) -> None:
    """Write a tokenizer over ``vocabulary`` and a model of ``family`` for ``context`` tokens to ``folder``."""
    tokenizer = make_tokenizer(vocabulary, context)
    model = make_family(family, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id, seed, context=context)
    with atomic_folder(folder) as out:
        tokenizer.save_pretrained(out)
        model.save_pretrained(out)
        write_manifest(out, KIND, {"family": family, "seed": seed, "trained": False})


def make_family(family: str, size: int, pad: int, eos: int, seed: int = 0, *, context: int = 1024) -> Any:
    """A model of ``family`` with ``size`` tokens and ``context`` positions."""
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"hidden_size": 32, "intermediate_size": 96, "vocab_size": size, "max_position_embeddings": context}
    tokens: dict[str, Any] = {"bos_token_id": None, "eos_token_id": eos, "pad_token_id": pad}
    config = AutoConfig.for_model(family, **{**common, **FAMILIES[family], **tokens})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        _enlarge(model)
    return model


@torch.no_grad()
def _enlarge(model: Any) -> None:
    for name, weight in model.named_parameters():
        if weight.ndim >= 2 and weight.std() < 0.1:
            weight.mul_(4.0)
        elif "bias" in name:
            weight.add_(0.5 * torch.randn(weight.shape))
