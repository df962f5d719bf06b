"""One process or several: who encodes what, and how vectors and gradients meet. One needs no torch.distributed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn


def rank() -> int:
    return distributed.get_rank() if _several() else 0


def ranks() -> int:
    return distributed.get_world_size() if _several() else 1


def wait_for_all() -> None:
    if _several():
        distributed.barrier()


def share(count: int) -> slice:
    """The part of ``count`` things that is this rank's; the parts are equal but for the last ones."""
    size = -(-count // ranks())
    return slice(min(rank() * size, count), min((rank() + 1) * size, count))


def gather(vectors: Tensor, count: int) -> Tensor:
    """All ranks' vectors [count, d] in order, each rank having made its ``share``; gradients find their way back."""
    if not _several():
        return vectors
    from sentence_transformers.util import all_gather_with_grad

    size = -(-count // ranks())
    padded = nn.functional.pad(vectors, (0, 0, 0, size - len(vectors)))
    everything: Tensor = all_gather_with_grad(padded)
    return everything[:count]


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all ranks, so that every rank makes the same step."""
    if not _several():
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)


def of_all_ranks(state: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Every rank's ``state``, in order."""
    if not _several():
        return [state]
    states: list[dict[str, Tensor]] = [{}] * ranks()
    distributed.all_gather_object(states, state)
    return states


def mean_over_ranks(value: float) -> float:
    if not _several():
        return value
    tensor = torch.tensor(value)
    distributed.all_reduce(tensor)
    return float(tensor) / ranks()


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
