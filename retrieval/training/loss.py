"""InfoNCE over a batch (van den Oord et al. 2018; Karpukhin et al. 2020, equation 2).

For query i with positive passage p(i) among all M passages of the batch on all ranks, and scores s of any family::

    L = 1/N  sum_i  -log( exp(s_i,p(i) / T) / sum_j exp(s_i,j / T) )        j over passages not masked for i

A masked passage is one that may also answer the query: a copy of the positive, another gold passage of the query, or
one that scores above the positive by more than a margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Targets:
    """How the passages of a batch relate to its queries.

    ``positive``: [N], the column of each query's positive. ``masked``: bool [N, M], never true at a positive.
    """

    positive: Tensor
    masked: Tensor

    def rows(self, start: int, end: int) -> Targets:
        """The targets of queries ``start`` to ``end``."""
        return Targets(self.positive[start:end], self.masked[start:end])


@dataclass(frozen=True, slots=True)
class ContrastiveLoss:
    """``loss``: mean over queries, a scalar with gradients. ``accuracy``: fraction whose positive scores highest."""

    loss: Tensor
    accuracy: float
    masked: float


class Columns:
    """The passages of a softmax by key, looked up once where they stay the same from step to step."""

    def __init__(self, keys: Sequence[str]) -> None:
        """``keys[j]`` is the key of passage j; copies of a passage have the same."""
        self.keys = keys
        self._places: dict[str, tuple[int, ...]] = {}
        for column, key in enumerate(keys):
            self._places[key] = (*self._places.get(key, ()), column)

    def of(self, key: str) -> tuple[int, ...]:
        """The columns of a passage's copies; none if it is not there."""
        return self._places.get(key, ())


def mask_golds(
    positive: Sequence[int],
    columns: Columns,
    golds: Sequence[frozenset[str]],
    device: torch.device | str = "cpu",
) -> Targets:
    """Targets in which all gold passages other than the positive itself are masked.

    ``golds[i]`` are the keys of all passages that answer query i. The mask is made on ``device``.
    """
    cells = {
        (row, column)
        for row, (own, keys) in enumerate(zip(positive, golds, strict=True))
        for key in keys | {columns.keys[own]}
        for column in columns.of(key)
        if column != own
    }
    masked = torch.zeros(len(positive), len(columns.keys), dtype=torch.bool, device=device)
    if cells:
        rows, others = torch.tensor(sorted(cells), device=device).T
        masked[rows, others] = True
    return Targets(torch.tensor(positive, dtype=torch.long), masked)


def info_nce(scores: Tensor, targets: Targets, *, temperature: float, margin: float | None = None) -> ContrastiveLoss:
    """The loss of ``scores`` [N, M] of queries and passages.

    ``margin``: passages that score above positive + margin, in units of the scores, are masked (None: no masking).
    """
    masked = targets.masked.to(scores.device)
    positive = targets.positive.to(scores.device)
    if margin is not None:
        own = scores.detach().gather(1, positive[:, None])
        masked = (masked | (scores.detach() > own + margin)).scatter(1, positive[:, None], False)
    logits = (scores / temperature).masked_fill(masked, float("-inf"))
    count = max(len(scores), 1)  # with a small batch a rank may have no query
    loss = functional.cross_entropy(logits, positive, reduction="sum") / count
    right = (logits.detach().argmax(dim=1) == positive).sum() if len(scores) else 0
    return ContrastiveLoss(loss, float(right) / count, float(masked.sum()) / max(masked.numel(), 1))
