"""Settings of sampling that change nothing, for engines that would take others from a model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NEUTRAL: Mapping[str, Any] = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "top_k": -1,
    "min_p": 0.0,
}
"""Sent with every request: an engine that is not told otherwise samples, greedily too, as its model's
generation_config.json says. The last three are not OpenAI's; vLLM and SGLang know them, with -1 for every token.
"""
