"""A policy's weights on their way: numpy arrays with a version, the adapter alone where there is one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agent.policies.probe import make_probe
from sleuth.errors import PolicyError

_BITS = {torch.bfloat16: torch.int16}
"""Types that numpy does not know travel as integers of their width."""


@dataclass(frozen=True, slots=True)
class Weights:
    """``arrays`` by parameter name, ``types`` their torch dtypes, ``tied`` further names of the same storage.

    ``version`` is the number of optimizer steps that made them. ``adapter``: a low-rank adapter's only. ``probe``
    are token ids with the trainer's log-probs of them, for engines that must show that they hold these weights.
    """

    version: int
    arrays: Mapping[str, np.ndarray[Any, Any]]
    types: Mapping[str, str]
    tied: Mapping[str, str]
    adapter: bool
    probe: tuple[tuple[int, ...], tuple[float, ...]] | None = None

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every name with its tensor, tied ones included: an engine that packs weights needs them by name."""
        for name, array in self.arrays.items():
            yield name, _tensor(array, self.types[name])
        for name, other in self.tied.items():
            yield name, _tensor(self.arrays[other], self.types[other])

    def digest(self) -> str:
        """Twelve hexadecimal digits that change with any bit of any weight."""
        total = hashlib.sha256()
        for name in sorted(self.arrays):
            total.update(name.encode())
            total.update(np.ascontiguousarray(self.arrays[name]).tobytes())
        return total.hexdigest()[:12]


def snapshot(model: Any, version: int, probe: Sequence[int] = ()) -> Weights:
    """The weights that a sampler of ``model`` needs; views of a CPU model's memory, so use them at once.

    With token ids in ``probe``, what the model says of them goes along.
    """
    adapter = hasattr(model, "peft_config")
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    types: dict[str, str] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in _state(model, adapter).items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        held = tensor.detach().cpu()
        types[name] = str(held.dtype).removeprefix("torch.")
        arrays[name] = (held.view(_BITS[held.dtype]) if held.dtype in _BITS else held).numpy()
    made = make_probe(model, probe) if probe else None
    return Weights(version, arrays, types, tied, adapter, (made.token_ids, made.logprobs) if made else None)


def load(model: Any, weights: Weights) -> None:
    """Write ``weights`` into ``model`` in place. Raises PolicyError unless they cover it exactly."""
    state = _state(model, weights.adapter)
    names = {*weights.arrays, *weights.tied}
    if state.keys() != names:
        odd = sorted(state.keys() ^ names)[:3]
        raise PolicyError(f"weights of another model: {', '.join(odd)}", "do all nodes load the same policy?")
    with torch.no_grad():
        for name, tensor in weights.tensors():
            if state[name].shape != tensor.shape:
                raise PolicyError(f"{name} is {tuple(tensor.shape)}, the model wants {tuple(state[name].shape)}")
            state[name].copy_(tensor)


def _state(model: Any, adapter: bool) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, sharing memory with the model; of an adapter only what is trained."""
    whole: dict[str, torch.Tensor] = model.state_dict()
    return {name: tensor for name, tensor in whole.items() if ".default." in name} if adapter else whole


def _tensor(array: np.ndarray[Any, Any], dtype: str) -> torch.Tensor:
    """A copy: the object store's memory cannot be written to, which torch does not know of."""
    return torch.tensor(array).view(getattr(torch, dtype))
