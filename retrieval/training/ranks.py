"""Distributes work over ranks and combines encodings and gradients. A single process needs no torch.distributed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from sentence_transformers.util import all_gather_padded, all_gather_with_grad, get_rank, get_world_size
from torch import Tensor, distributed, nn

from retrieval.encoders.family import Encoded


def work_on(device: torch.device) -> None:
    """Let barriers and gathered objects use the GPU that this rank trains on: NCCL takes the current one for them."""
    if _several() and device.type == "cuda":
        torch.cuda.set_device(device)


def wait_for_all() -> None:
    if _several():
        distributed.barrier()


def rank_slice(count: int) -> slice:
    """This rank's slice of ``count`` items; slices are equal except for the last ones."""
    size, rank = -(-count // get_world_size()), get_rank()
    return slice(min(rank * size, count), min((rank + 1) * size, count))


def gather(encoded: Encoded, count: int) -> Encoded:
    """All ranks' texts in order, where each rank encoded its ``rank_slice`` of ``count``; gradients flow back."""
    if not _several():
        return encoded
    missing = -(-count // get_world_size()) - len(encoded)
    values = _with_rows(encoded.values, missing)
    if encoded.mask is None:
        return Encoded(all_gather_with_grad(values))[:count]
    return Encoded(*all_gather_padded(values, _with_rows(encoded.mask, missing), with_grad=True))[:count]


def _with_rows(values: Tensor, more: int) -> Tensor:
    return nn.functional.pad(values, (0, 0) * (values.ndim - 1) + (0, more))


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of all ranks, so that every rank takes the same step."""
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
    states: list[dict[str, Tensor]] = [{}] * get_world_size()
    distributed.all_gather_object(states, state)
    return states


def mean_over_ranks(figures: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each figure's mean. ``device`` is where the ranks train: NCCL reduces nothing that lies on a CPU."""
    if not _several():
        return dict(figures)
    names = sorted(figures)  # in one order on every rank
    values = torch.tensor([figures[name] for name in names], dtype=torch.float64, device=device)
    distributed.all_reduce(values)
    means: list[float] = (values / get_world_size()).tolist()
    return dict(zip(names, means, strict=True))


def spread_from_first(tensors: Iterable[Tensor]) -> None:
    """Give every rank the first rank's values, as bytes: so any type goes through any backend."""
    if not _several():
        return
    with torch.no_grad():
        for tensor in tensors:
            whole = tensor.detach().contiguous()
            distributed.broadcast(whole.reshape(-1).view(torch.uint8), src=0)
            tensor.copy_(whole)


def _several() -> bool:
    return bool(get_world_size() > 1)
