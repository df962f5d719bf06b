"""How many tokens a model reads: what is cut to them, and what is refused because it is whole or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig

from retrieval.encoders.config import EncoderSettings
from retrieval.encoders.inputs import Input, Seen
from sleuth.errors import DataError

_LENGTHS = frozenset({"query_max_tokens", "passage_max_tokens"})
WHOLE: Mapping[str, Any] = {"text": {"truncation": False, "max_length": None}}
"""How the library's processor is told to cut nothing: of a picture's tokens none can be missing."""


def positions_of(config: Any) -> int | None:
    """Tokens that a model of transformers with this ``config`` reads at most; None if it does not say."""
    inner = getattr(config, "vlm_config", config)
    texts = getattr(inner, "text_config", inner)
    found = int(getattr(texts, "max_position_embeddings", None) or 0)
    return found if found > 0 else None


def fitted(settings: EncoderSettings, folder: str) -> EncoderSettings:
    """``settings`` with the lengths that nobody named no longer than what the model in ``folder`` reads."""
    unnamed = {name: getattr(settings, name) for name in _LENGTHS - settings.model_fields_set}
    if not unnamed:
        return settings
    most = positions_of(AutoConfig.from_pretrained(folder))
    shorter = {name: most for name, length in unnamed.items() if most is not None and most < length}
    return settings.model_copy(update=shorter)


def refuse_too_long(features: Mapping[str, Any], inputs: Sequence[Input], config: Any) -> None:
    """Raise DataError naming the picture whose tokens, with its text's, are more than the model reads."""
    most = positions_of(config)
    if most is None or "input_ids" not in features or features["input_ids"].shape[1] <= most:
        return
    counts = features["attention_mask"].sum(1)
    longest = int(counts.argmax())
    given = inputs[longest]
    name = given.image.name if isinstance(given, Seen) else "a text"
    raise DataError(
        f"{name} takes {int(counts[longest])} tokens, but the encoder reads at most {most}",
        "make the pages smaller, or the size to which its processor scales them",
    )
