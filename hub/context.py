"""How long a text a model knows, from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SCALED_LATER = ("yarn", "linear", "dynamic")
"""Kinds of rotary positions that are stretched by ``factor`` beyond what the configuration gives as its positions."""


def context_length(config: Any) -> int | None:
    """The number of positions of a model with this transformers ``config``; None if nothing limits it (ALiBi, Mamba).

    Beyond it, learned positions raise an IndexError; rotary ones go on with angles that were never trained.
    """
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if not positions:
        return None
    return max([int(positions), *(_stretched(rope, int(positions)) for rope in _ropes(text))])


def _ropes(text: Any) -> Iterator[Mapping[str, Any]]:
    """The model's rotary settings: one mapping, or one for each kind of layer."""
    given = getattr(text, "rope_parameters", None) or {}
    yield from [given] if "rope_type" in given else (one for one in given.values() if isinstance(one, Mapping))


def _stretched(rope: Mapping[str, Any], positions: int) -> int:
    if rope.get("rope_type") not in _SCALED_LATER:
        return positions
    return int(float(rope.get("factor") or 1.0) * int(rope.get("original_max_position_embeddings") or positions))
