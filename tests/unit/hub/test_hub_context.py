"""How many tokens a model knows, as its configuration says."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoConfig

from hub.context import context_length

YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize(
    ("kind", "values", "positions"),
    [
        ("gpt2", {"n_positions": 256}, 256),
        ("llama", {"max_position_embeddings": 2048}, 2048),
        ("qwen2", {"max_position_embeddings": 32768, "rope_parameters": YARN}, 131072),
        ("llama", {"max_position_embeddings": 8192, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 16384),
        ("gemma3", {"text_config": {"max_position_embeddings": 512}}, 512),
        ("bloom", {}, None),
        ("mamba", {}, None),
    ],
)
def test_positions_are_those_that_were_trained(kind: str, values: dict[str, Any], positions: int | None) -> None:
    assert context_length(AutoConfig.for_model(kind, **values)) == positions


def test_positions_that_a_configuration_already_stretched_are_not_stretched_again() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    config = AutoConfig.for_model("llama", max_position_embeddings=131072, rope_parameters=rope)
    assert context_length(config) == 131072
