"""Samples tokens such that a request's result depends on its own seed and not on the rest of the batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sleuth.types import Sampling


def uniforms(seeds: Sequence[int], count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """[rows, count] numbers in [0, 1), each row from its own seed (Philox, counter-based)."""
    return np.stack([np.random.Generator(np.random.Philox(key=seed)).random(count) for seed in seeds])


def pick(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [rows] and their log-probs [rows] from logits [rows, vocabulary] and uniform draws [rows].

    Log-probs are those of the distribution sampled from: after temperature, and after top-p if it is below 1, unless
    ``full_logprobs`` asks for those before top-p. A greedy choice reports the log-prob at temperature 1.
    """
    scores = logits.float()
    if sampling.greedy:
        logprobs = scores.log_softmax(-1)
        tokens = scores.argmax(-1)
    else:
        logprobs = (scores / sampling.temperature).log_softmax(-1)
        nucleus = _nucleus(logprobs, sampling.top_p) if sampling.top_p < 1.0 else logprobs
        logprobs = logprobs if sampling.full_logprobs else nucleus
        cumulative = nucleus.double().exp().cumsum(-1)
        # Scaling by the last sum keeps rounding from indexing past the end.
        target = draws.to(cumulative)[:, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def _nucleus(logprobs: torch.Tensor, top_p: float) -> torch.Tensor:
    """Log-probs renormalised over the smallest set of tokens whose probability reaches ``top_p``."""
    ordered, order = logprobs.sort(dim=-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    kept = torch.empty_like(logprobs).scatter(-1, order, ordered.masked_fill(before >= top_p, -torch.inf))
    return kept.log_softmax(-1)
