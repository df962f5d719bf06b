"""The losses of rerankers, from the scores of a step's pairs, which may have been read in any order and in parts.

Losses of whole lists are sentence-transformers' own. They take texts and run the model: here they get a stand-in that
gives back the scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from sentence_transformers.cross_encoder import losses
from sentence_transformers.cross_encoder.losses.lambda_loss import BaseWeightingScheme
from torch import Tensor
from torch.nn import functional

from retrieval.training.loss import Targets, info_nce
from retrieval.training.rerankers.config import (
    BCESettings,
    ContrastiveSettings,
    KLSettings,
    LambdaSettings,
    ListMLESettings,
    ListNetSettings,
    LossSettings,
    MarginMSESettings,
    MSESettings,
    RankNetSettings,
)
from retrieval.training.rerankers.lists import RankedList
from sleuth.plugins import load_object

ListLoss = Callable[[Sequence[RankedList], Tensor], Tensor]
"""A scalar from lists and the scores of all their passages, one list after the other: [passages]."""

_WEIGHTINGS: dict[str, Callable[[], BaseWeightingScheme]] = {
    "ndcg1": losses.NDCGLoss1Scheme,
    "ndcg2": losses.NDCGLoss2Scheme,
    "ndcg2++": losses.NDCGLoss2PPScheme,
    "lambdarank": losses.LambdaRankScheme,
}


def make_loss(settings: LossSettings, negatives_to_a_gold: float) -> ListLoss:
    """The loss of ``settings``; ``negatives_to_a_gold`` is the ratio that pairwise losses even out."""
    made: ListLoss = load_object(settings.LOSS)(settings, negatives_to_a_gold)
    return made


def bce(_settings: BCESettings, ratio: float) -> ListLoss:
    def loss(lists: Sequence[RankedList], scores: Tensor) -> Tensor:
        weight = torch.tensor(ratio, device=scores.device)
        return functional.binary_cross_entropy_with_logits(scores, _labels(lists, scores), pos_weight=weight)

    return loss


def mse(_settings: MSESettings, _ratio: float) -> ListLoss:
    return lambda lists, scores: functional.mse_loss(scores, _labels(lists, scores))


def listnet(_settings: ListNetSettings, _ratio: float) -> ListLoss:
    return _of_lists(losses.ListNetLoss)


def list_mle(_settings: ListMLESettings, _ratio: float) -> ListLoss:
    return _of_lists(lambda model: losses.ListMLELoss(model, respect_input_order=False))


def ranknet(_settings: RankNetSettings, _ratio: float) -> ListLoss:
    return _of_lists(losses.RankNetLoss)


def lambda_loss(settings: LambdaSettings, _ratio: float) -> ListLoss:
    scheme = _WEIGHTINGS[settings.weighting]()
    return _of_lists(lambda model: losses.LambdaLoss(model, weighting_scheme=scheme, k=settings.top))


def margin_mse(_settings: MarginMSESettings, _ratio: float) -> ListLoss:
    """Over every gold and negative of a list."""

    def loss(lists: Sequence[RankedList], scores: Tensor) -> Tensor:
        starts = itertools.accumulate((len(one.passages) for one in lists), initial=0)
        pairs = [
            (start + gold, start + other)
            for start, one in zip(starts, lists, strict=False)
            for gold in range(one.golds)
            for other in range(one.golds, len(one.passages))
        ]
        golds, others = torch.tensor(pairs, device=scores.device).T
        taught = _labels(lists, scores)
        return functional.mse_loss(scores[golds] - scores[others], taught[golds] - taught[others])

    return loss


def contrastive(settings: ContrastiveSettings, _ratio: float) -> ListLoss:
    def loss(lists: Sequence[RankedList], scores: Tensor) -> Tensor:
        matrix, there = _padded(scores, [len(one.passages) for one in lists])
        first = torch.zeros(len(lists), dtype=torch.long)
        return info_nce(matrix, Targets(first, ~there), temperature=settings.temperature).loss

    return loss


def kl(settings: KLSettings, _ratio: float) -> ListLoss:
    """Mean over lists of KL(teacher || reranker); both softmaxes at the same temperature."""

    def loss(lists: Sequence[RankedList], scores: Tensor) -> Tensor:
        parts = scores.float().split([len(one.passages) for one in lists])
        taught = [torch.tensor(one.labels, device=scores.device) for one in lists]
        own = [functional.log_softmax(part / settings.temperature, 0) for part in parts]
        wanted = [functional.log_softmax(labels / settings.temperature, 0) for labels in taught]
        each = [functional.kl_div(o, w, reduction="sum", log_target=True) for o, w in zip(own, wanted, strict=True)]
        return torch.stack(each).mean()

    return loss


def _labels(lists: Sequence[RankedList], scores: Tensor) -> Tensor:
    return torch.tensor([label for one in lists for label in one.labels], device=scores.device)


def _of_lists(make: Callable[[Any], Any]) -> ListLoss:
    """A loss of lists and their labels."""

    def loss(lists: Sequence[RankedList], scores: Tensor) -> Tensor:
        places = iter(range(len(scores)))
        columns = [[next(places) for _ in one.passages] for one in lists]
        labels = [torch.tensor(one.labels, device=scores.device) for one in lists]
        found: Tensor = make(_Known(scores))([[one.query for one in lists], columns], labels)
        return found

    return loss


class _Known:
    """Stands in for a cross-encoder whose scores are known: a passage is the place of its score."""

    num_labels = 1

    def __init__(self, scores: Tensor) -> None:
        self._scores = scores
        self.device = scores.device

    def preprocess(self, pairs: Iterable[tuple[str, int]], **_how: Any) -> dict[str, Tensor]:
        return {"places": torch.tensor([place for _, place in pairs])}

    def __call__(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"scores": self._scores[features["places"]][:, None]}


def _padded(scores: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Scores [lists, longest], and where there is one."""
    there = torch.arange(max(sizes))[None] < torch.tensor(sizes)[:, None]
    there = there.to(scores.device)
    matrix = torch.zeros(there.shape, dtype=torch.float32, device=scores.device)
    return matrix.masked_scatter(there, scores.float()), there
