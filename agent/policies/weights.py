"""Weights sent from the trained model to the policies that sample: all of them, or only an adapter's.

In the trainer's process they are the model's own memory (``LiveWeights``); elsewhere, copies (``SentWeights``).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from agent.policies.probe import make_probe
from sleuth.errors import PolicyError
from sleuth.protocols import Weights
from sleuth.types import Probe

_BITS = {torch.bfloat16: torch.int16}
"""Dtypes that numpy lacks are sent as integers of the same width."""
_OF_AN_ADAPTER = ("lora_alpha", "use_rslora", "fan_in_fan_out", "base_model_name_or_path")
"""Settings of an adapter that are not evident from its tensors."""


@dataclass(frozen=True, slots=True)
class LiveWeights:
    """The weights of ``module`` as they are now, after ``version`` optimizer steps; load them before the next one."""

    version: int
    module: Any
    probe_ids: Sequence[int] = ()

    @property
    def adapter(self) -> Mapping[str, Any] | None:
        if not hasattr(self.module, "peft_config"):
            return None
        config = self.module.peft_config["default"].to_dict()
        return {name: config[name] for name in _OF_AN_ADAPTER if config.get(name) is not None}

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return trained_state(self.module, adapter=self.adapter is not None)

    def probe(self) -> Probe | None:
        return make_probe(self.module, self.probe_ids) if self.probe_ids else None


@dataclass(frozen=True, slots=True)
class SentWeights:
    """``arrays`` by parameter name, ``types`` their torch dtypes, ``tied`` other names of the same storage."""

    version: int
    arrays: Mapping[str, np.ndarray[Any, Any]]
    types: Mapping[str, str]
    tied: Mapping[str, str]
    adapter: Mapping[str, Any] | None
    probed: Probe | None

    @property
    def module(self) -> None:
        return None

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays.values())

    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Includes tied names: an engine that packs weights needs them."""
        held = {name: _tensor(array, self.types[name]) for name, array in self.arrays.items()}
        return held | {name: held[other] for name, other in self.tied.items()}

    def probe(self) -> Probe | None:
        return self.probed


def send(weights: LiveWeights) -> SentWeights:
    """``weights`` as numpy arrays, sent without a copy; views of a CPU model's memory, so use them at once."""
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    types: dict[str, str] = {}
    tied: dict[str, str] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in weights.tensors().items():
        place = (tensor.data_ptr(), tensor.shape)
        if tensor.numel() and place in first:
            tied[name] = first[place]
            continue
        first[place] = name
        held = tensor.detach().cpu()
        types[name] = str(held.dtype).removeprefix("torch.")
        arrays[name] = (held.view(_BITS[held.dtype]) if held.dtype in _BITS else held).numpy()
    return SentWeights(weights.version, arrays, types, tied, weights.adapter, weights.probe())


def put_into(module: Any, weights: Weights) -> None:
    """Write ``weights`` into ``module`` in place. Raises PolicyError unless they cover it exactly."""
    state = trained_state(module, adapter=weights.adapter is not None)
    tensors = weights.tensors()
    if state.keys() != tensors.keys():
        odd = sorted(state.keys() ^ tensors.keys())[:3]
        raise PolicyError(f"weights of a different model: {', '.join(odd)}", "do all nodes load the same policy?")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if state[name].shape != tensor.shape:
                raise PolicyError(f"{name} is {tuple(tensor.shape)}, the model has {tuple(state[name].shape)}")
            state[name].copy_(tensor)


def trained_state(module: Any, *, adapter: bool) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, sharing memory with ``module``; with ``adapter`` only the trained ones."""
    whole: dict[str, torch.Tensor] = module.state_dict()
    return {name: tensor for name, tensor in whole.items() if ".default." in name} if adapter else whole


def _tensor(array: np.ndarray[Any, Any], dtype: str) -> torch.Tensor:
    with warnings.catch_warnings():
        # An object store's memory is read-only, which torch warns about: weights are only read.
        warnings.simplefilter("ignore")
        return torch.from_numpy(array).view(getattr(torch, dtype))
