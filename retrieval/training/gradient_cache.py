"""Gradient caching (Gao et al. 2021): batch size is not limited by memory.

Embed every chunk without a graph, compute the loss over all of them and keep the gradients of the embeddings, then
embed each chunk again, with the same random numbers, and backpropagate its part of the gradients. Loss and gradients
equal those of a single pass, at the cost of a second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sentence_transformers.base.losses.gradcache import RandContext
from torch import Tensor

from retrieval.encoders.family import Encoded, join

Embed = Callable[[], Encoded]
"""Embeds one chunk, with a graph if gradients are enabled."""


def cached_backward(
    groups: Sequence[Sequence[Embed]],
    loss_of: Callable[[Sequence[Encoded]], Tensor],
    *,
    cached: bool = True,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Add the gradients of ``loss_of`` to the parameters behind ``groups``; returns the loss, detached.

    ``loss_of`` gets each group's chunks concatenated. ``cached`` False keeps all graphs: one pass, full memory.
    ``device`` is where chunks are embedded and whose random state is replayed.
    """
    if not cached:
        loss = loss_of([join([embed() for embed in group]) for group in groups])
        loss.backward()
        return loss.detach()
    states: list[list[RandContext]] = []
    leaves: list[Encoded] = []
    with torch.no_grad():
        for group in groups:
            taken, parts = [], []
            for embed in group:
                taken.append(RandContext(torch.empty(0, device=device)))
                parts.append(embed())
            states.append(taken)
            leaves.append(join(parts))
            leaves[-1].values.requires_grad_()
    with torch.enable_grad():
        loss = loss_of(leaves)
    loss.backward()
    for group, taken, leaf in zip(groups, states, leaves, strict=True):
        if leaf.values.grad is not None:
            _send_back(group, taken, leaf.values.grad)
    return loss.detach()


def _send_back(group: Sequence[Embed], states: Sequence[RandContext], gradient: Tensor) -> None:
    start = 0
    for embed, state in zip(group, states, strict=True):
        with state:
            values = embed().values
        own = gradient[start : start + len(values), : values.shape[1]]  # without the chunk's padding
        start += len(values)
        if values.requires_grad:
            values.backward(own)
