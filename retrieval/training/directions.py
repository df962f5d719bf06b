"""Further directions of InfoNCE: passages find their queries, and queries and passages keep apart among themselves.

Symmetric InfoNCE is query_to_passage and passage_to_query with a softmax each (Günther et al. 2023); GTE's loss is all
four in one softmax (Li et al. 2023). As sentence-transformers' ``directions`` and ``partition_mode``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retrieval.encoders.family import Encoded, Family
from retrieval.training.loss import Targets, own_negatives
from retrieval.training.loss_config import Direction


def beside(
    directions: Sequence[Direction],
    family: Family,
    queries: Encoded,
    everyone: Encoded,
    passages: Encoded,
    targets: Targets,
    mine: slice,
) -> list[Tensor]:
    """For each further direction the scores [n, X] of this rank's n queries' other candidates, -inf where masked.

    ``queries`` are those of rows ``mine`` of ``everyone``, which ``targets`` are of.
    """
    targets = targets.to(queries.values.device)
    positives = passages[targets.positive[mine]]
    found = []
    for direction in directions:
        if direction == "passage_to_query":
            scores, masked = family.scores(everyone, positives).T, _answered(targets).T[mine]
            masked = masked & ~_itself(targets, mine)
        elif direction == "query_to_query":
            answered = _answered(targets)
            scores, masked = family.scores(everyone, queries).T, (answered | answered.T)[mine]
        elif direction == "passage_to_passage":
            scores, masked = family.scores(passages, positives).T, _of_the_same_query(targets.rows(mine))
        else:
            continue
        found.append(scores.masked_fill(masked, float("-inf")))
    return found


def _answered(targets: Targets) -> Tensor:
    """[N, N]: whether query i is answered by the positive of query j, its own included."""
    positive = targets.positive
    return targets.masked[:, positive] | (positive[:, None] == positive)


def _itself(targets: Targets, mine: slice) -> Tensor:
    return torch.eye(len(targets.positive), dtype=torch.bool, device=targets.positive.device)[mine]


def _of_the_same_query(targets: Targets) -> Tensor:
    """[n, M]: the query's positive, other golds, and hard negatives."""
    return (targets.masked | own_negatives(targets)).scatter(1, targets.positive[:, None], True)
