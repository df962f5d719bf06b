"""One step of a reranker: the lists of its queries, the scores of their pairs, and a loss over all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sentence_transformers.util import get_world_size
from torch import Tensor

from retrieval.encoders.family import Encoded
from retrieval.instructed import by_instruction
from retrieval.rerankers.scorer import Pair
from retrieval.training.gradient_cache import Embed, cached_backward
from retrieval.training.instructions import in_order
from retrieval.training.ranks import gather, rank_slice
from retrieval.training.rerankers.config import RerankerSettings
from retrieval.training.rerankers.lists import ListSampler, RankedList
from retrieval.training.rerankers.losses import make_loss
from retrieval.training.rerankers.model import Reranker
from retrieval.training.row import TrainingRow


@dataclass(frozen=True, slots=True)
class _Asked:
    pair: Pair
    instruction: str


class RankLists:
    """Each rank reads its share of a step's pairs; the loss is over the scores of all."""

    def __init__(self, rows: Sequence[TrainingRow], settings: RerankerSettings, seed: int) -> None:
        self._settings = settings
        self.sampler = ListSampler(rows, settings.loss, settings.batch_size, settings.hard_negatives, seed)
        self.sampler.warn_of_undrawn(settings.steps or self.sampler.steps(settings.epochs))
        self._loss = make_loss(settings.loss, self.sampler.negatives_to_a_gold())

    def steps(self, epochs: float) -> int:
        return self.sampler.steps(epochs)

    def backward(self, reranker: Reranker, step: int) -> dict[str, float]:
        """Add this rank's part of the gradients of a step to ``reranker``.

        Ranks add their gradients up, and each works out the whole loss, so it weighs it by their number.
        """
        lists = self.sampler.lists(step)
        pairs = [_Asked((one.query, text), one.instruction) for one in lists for text in one.passages]
        order = sorted(range(len(pairs)), key=lambda place: sum(map(len, pairs[place].pair)))
        back = torch.tensor(order).argsort()
        figures: dict[str, float] = {}

        def loss_of(parts: Sequence[Encoded]) -> Tensor:
            scores = gather(parts[0], len(pairs)).values[:, 0]
            scores = scores[back.to(scores.device)]
            loss: Tensor = self._loss(lists, weighted(lists, scores))
            figures.update(loss=float(loss.detach()), accuracy=_accuracy(lists, scores.detach()))
            return loss / int(get_world_size())

        mine = [pairs[place] for place in order][rank_slice(len(pairs))]
        size = self._settings.micro_batch or max(len(mine), 1)
        chunks = [self._embed(reranker, mine[start : start + size]) for start in range(0, len(mine), size)]
        groups = [chunks or [lambda: Encoded(torch.zeros(0, 1, device=reranker.device, requires_grad=True))]]
        cached_backward(groups, loss_of, cached=len(chunks) > 1, device=reranker.device)
        return figures

    def _embed(self, reranker: Reranker, asked: Sequence[_Asked]) -> Embed:
        groups = by_instruction([one.instruction for one in asked])
        features = [
            reranker.features([asked[place].pair for place in places], instruction)
            for instruction, places in groups.items()
        ]
        autocast: Callable[[], Any] = lambda: torch.autocast(
            reranker.device.type, torch.bfloat16, enabled=self._settings.precision == "bfloat16"
        )

        def embed() -> Encoded:
            with autocast():
                parts = [Encoded(reranker.scores(some)[:, None]) for some in features]
            return in_order(parts, list(groups.values()))

        return embed


def weighted(lists: Sequence[RankedList], scores: Tensor) -> Tensor:
    """The same scores, [passages], whose gradients weigh each list.

    A loss that adds up lists then learns from each by its weight, whichever loss it is; its value stays that of lists
    that count alike.
    """
    if all(one.weight == 1.0 for one in lists):
        return scores
    weights = torch.tensor([one.weight for one in lists for _ in one.passages], device=scores.device)
    still = scores.detach()
    return still + weights.to(scores.dtype) * (scores - still)


def _accuracy(lists: Sequence[RankedList], scores: Tensor) -> float:
    """The fraction of lists whose best passage is a gold."""
    parts = scores.split([len(one.passages) for one in lists])
    return sum(int(part.argmax()) < one.golds for part, one in zip(parts, lists, strict=True)) / len(lists)
