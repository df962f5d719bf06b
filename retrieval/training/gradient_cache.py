"""Gradient caching (Gao et al. 2021): the batch is not bounded by memory.

Embed every chunk without a graph, take the loss over all embeddings and keep their gradients, then embed each
chunk again, with the random numbers that it had, and hand its share of the gradients back. Loss and gradients
equal those of one pass; the price is a second forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Embed = Callable[[], Tensor]
"""Embeds one chunk: [rows, d], with a graph when gradients are enabled."""


def cached_backward(
    groups: Sequence[Sequence[Embed]], loss_of: Callable[[Sequence[Tensor]], Tensor], *, cached: bool = True
) -> Tensor:
    """Add the gradients of ``loss_of`` to the parameters behind ``groups``; returns the loss, detached.

    ``loss_of`` gets one tensor a group, its chunks end to end. ``cached`` False keeps all graphs: one pass, all memory.
    """
    if not cached:
        loss = loss_of([torch.cat([embed() for embed in group]) for group in groups])
        loss.backward()
        return loss.detach()
    states: list[list[_Randomness]] = []
    leaves: list[Tensor] = []
    with torch.no_grad():
        for group in groups:
            taken = []
            parts = []
            for embed in group:
                taken.append(_Randomness())
                parts.append(embed())
            states.append(taken)
            leaves.append(torch.cat(parts).requires_grad_())
    with torch.enable_grad():
        loss = loss_of(leaves)
    loss.backward()
    after = _Randomness()
    for group, taken, leaf in zip(groups, states, leaves, strict=True):
        _send_back(group, taken, leaf)
    after.restore()
    return loss.detach()


def _send_back(group: Sequence[Embed], states: Sequence[_Randomness], leaf: Tensor) -> None:
    start = 0
    for embed, state in zip(group, states, strict=True):
        state.restore()
        vectors = embed()
        gradient = leaf.grad[start : start + len(vectors)] if leaf.grad is not None else None
        start += len(vectors)
        if vectors.requires_grad and gradient is not None:
            vectors.backward(gradient)


class _Randomness:
    """The state of the random generators at one moment: dropout drawn after ``restore`` is dropout drawn then."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
