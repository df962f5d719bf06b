"""InfoNCE over a batch (van den Oord et al. 2018; Karpukhin et al. 2020, equation 2).

For query i with positive passage p(i) among all M passages of the batch on all ranks, and scores s of any family::

    L = 1/N  sum_i  -log( exp(s_i,p(i) / T) / sum_j exp(s_i,j / T) )        j over passages not masked for i

A masked passage is one that may also answer the query: a copy of the positive, another gold passage of the query, or
one that scores above the positive by more than a margin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from retrieval.passages import content_key
from retrieval.training.loss_config import HardnessSettings
from sleuth.types import Passage


@dataclass(frozen=True, slots=True)
class Targets:
    """How the passages of a batch relate to its queries.

    ``positive``: [N], the column of each query's positive. ``masked``: bool [N, M], never true at a positive.
    ``negatives``: the columns of each query's own hard negatives; empty if no query has any.
    """

    positive: Tensor
    masked: Tensor
    negatives: Sequence[Sequence[int]] = ()

    def rows(self, some: slice) -> Targets:
        """The targets of some of the queries."""
        return Targets(self.positive[some], self.masked[some], self.negatives[some])

    def own(self, row: int) -> Sequence[int]:
        """The columns of the hard negatives of query ``row``."""
        return self.negatives[row] if self.negatives else ()

    def to(self, device: torch.device) -> Targets:
        return Targets(self.positive.to(device), self.masked.to(device), self.negatives)


@dataclass(frozen=True, slots=True)
class ContrastiveLoss:
    """``loss``: mean over queries, a scalar with gradients. ``accuracy``: fraction whose positive scores highest."""

    loss: Tensor
    accuracy: float
    masked: float


class Columns:
    """The passages of a softmax by key, looked up once where they stay the same from step to step."""

    def __init__(self, keys: Sequence[str], key_of: Callable[[Passage], str] = content_key) -> None:
        """``keys[j]`` is the key of passage j under ``key_of``; copies of a passage have the same."""
        self.keys, self.key_of = keys, key_of
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
    negatives: Sequence[Sequence[int]] = (),
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
    return Targets(torch.tensor(positive, dtype=torch.long), masked, negatives)


def own_negatives(targets: Targets) -> Tensor:
    """[N, M]: whether a passage is one of the query's own hard negatives."""
    cells = [(row, column) for row in range(len(targets.positive)) for column in targets.own(row)]
    found = torch.zeros_like(targets.masked)
    if cells:
        rows, columns = torch.tensor(cells, device=found.device).T
        found[rows, columns] = True
    return found


def penalties(scores: Tensor, targets: Targets, hardness: HardnessSettings) -> Tensor:
    """[N, M], what is added to the logits of negatives: their score times the strength, without a gradient."""
    hard = own_negatives(targets)
    others = (~hard).scatter(1, targets.positive[:, None], False)
    chosen = {"hard_negatives": hard, "in_batch_negatives": others, "all_negatives": hard | others}
    return hardness.strength * scores.detach() * chosen[hardness.mode]


def info_nce(
    scores: Tensor,
    targets: Targets,
    *,
    temperature: float,
    margin: float | None = None,
    hardness: HardnessSettings | None = None,
    beside: Sequence[Tensor] = (),
    joint: bool = True,
    weights: Sequence[float] = (),
) -> ContrastiveLoss:
    """The loss of ``scores`` [N, M] of queries and passages.

    ``margin``: passages that score above positive + margin, in units of the scores, are masked (None: no masking).
    ``beside``: scores [N, X] of candidates of further directions, -inf where masked, which share the softmax if
    ``joint``; otherwise the loss is the mean over one softmax each. ``weights``: of each query; empty: all weigh 1.
    """
    targets = targets.to(scores.device)
    masked, positive = targets.masked, targets.positive
    if margin is not None:
        own = scores.detach().gather(1, positive[:, None])
        masked = (masked | (scores.detach() > own + margin)).scatter(1, positive[:, None], False)
    logits = scores / temperature
    if hardness is not None:
        logits = logits + penalties(scores, targets, hardness)
    logits = logits.masked_fill(masked, float("-inf"))
    count = max(len(scores), 1)  # with a small batch a rank may have no query
    if not beside:
        each = functional.cross_entropy(logits, positive, reduction="none")
    else:
        softmaxes = [logits, *(more / temperature for more in beside)]
        softmaxes = [torch.cat(softmaxes, 1)] if joint else softmaxes
        norm = torch.stack([some.logsumexp(1) for some in softmaxes]).mean(0)
        each = norm - logits.gather(1, positive[:, None])[:, 0]
    if any(weight != 1.0 for weight in weights):
        each = each * torch.tensor(weights, device=each.device, dtype=each.dtype)
    loss = each.sum() / count
    right = (scores.detach().masked_fill(masked, float("-inf")).argmax(dim=1) == positive).sum() if len(scores) else 0
    return ContrastiveLoss(loss, float(right) / count, float(masked.sum()) / max(masked.numel(), 1))
