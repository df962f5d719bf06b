"""Whether a model can be sampled from in batches: what a row gets must not depend on the rows beside it.

Rows of unequal length are padded on the left. Attention ignores padding by its mask; a recurrent layer has to be told,
and not every model of transformers (or kernel that it picks) is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from agent.policies.kv_cache import RowCache
from agent.policies.probe import ROUNDING, probe_tokens
from sleuth.errors import PolicyError, first_line
from sleuth.protocols import TextCodec

_LENGTHS = (19, 3, 10)
"""Tokens of the rows' prefixes. The second row also ends early, as one that met a stop string."""
_STEPS = 4
_BOUNDS = ROUNDING | {"float32": 1e-4}
"""In nats. In float32 the same kernels are compared: closer than an engine's with the trainer's."""


def check_rows(model: Any, codec: TextCodec) -> None:
    """Raise PolicyError unless rows of unequal length get, in one batch, the log-probs that each gets alone."""
    tokens = probe_tokens(codec)
    rows = [[tokens[(7 * row + i) % len(tokens)] for i in range(n + _STEPS)] for row, n in enumerate(_LENGTHS)]
    kind, hint = model.config.model_type, "serve it with vllm (policy.backend: vllm), or choose another model"
    try:
        gap = _gap(model, rows, codec.pad_token_id)
    except Exception as error:  # a cache of the wrong kind can raise anything
        raise PolicyError(f"models of kind {kind} cannot be sampled from here: {first_line(error)}", hint) from error
    if not gap <= _BOUNDS.get(str(model.dtype).removeprefix("torch."), 0.0):
        raise PolicyError(
            f"models of kind {kind} cannot be sampled from here: in a batch, with padding or a cache, a token's"
            f" log-prob is {gap:.2g} nats off",
            hint,
        )


@torch.no_grad()
def _gap(model: Any, rows: Sequence[Sequence[int]], pad: int) -> float:
    """The largest difference, in nats, between a token's log-prob in a growing batch and in its row alone."""
    training = model.training
    model.eval()
    try:
        alone = [model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0] for row in rows]
        cache, gaps = RowCache([str(row) for row in range(len(rows))], model), []
        feed = [list(row[:length]) for row, length in zip(rows, _LENGTHS, strict=True)]
        for step in range(_STEPS):
            logits = cache.feed(model, feed, pad)
            for index, (row, length) in enumerate(zip(rows, _LENGTHS, strict=True)):
                target, fed = row[length + step], bool(feed[index])
                feed[index] = [target] if fed and (index != 1 or step < _STEPS // 2) else []
                if fed:
                    expected = alone[index][length + step - 1].float().log_softmax(-1)[target]
                    gaps.append((logits[index].float().log_softmax(-1)[target] - expected).abs())
    finally:
        model.train(training)
    return float(torch.stack(gaps).max())
