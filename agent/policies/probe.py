"""A probe: the trainer's log-probs of a fixed text, to verify that an engine has the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sleuth.protocols import TextCodec
from sleuth.types import Probe

_TEXT = (
    "Question: which river runs through the city where the author of the book was born? "
    "First find the author, then the place of birth, then the river. 1 2 3, and 4 5 6."
)
_LONGEST = 64
ROUNDING = {"float32": 1e-3, "bfloat16": 0.5, "float16": 0.1}
"""Tolerated difference, in nats, of the log-probs of one text by two ways to compute them: kernels and rounding differ.
What is wrong with weights or padding moves them by more."""


def probe_tokens(codec: TextCodec) -> list[int]:
    return codec.encode(_TEXT)[:_LONGEST]


def make_probe(model: Any, token_ids: Sequence[int]) -> Probe:
    """The log-probs of ``token_ids`` under ``model``, without dropout, in its own dtype."""
    import torch

    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            ids = torch.tensor([list(token_ids)], device=model.device)
            logprobs = model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)
    finally:
        model.train(training)
    chosen = logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1)
    return Probe(tuple(token_ids), tuple(chosen.tolist()))
