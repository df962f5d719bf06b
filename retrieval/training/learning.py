"""What the training loop needs to know of what it trains, and of what a step minimises."""

from __future__ import annotations

from typing import Protocol, TypeVar

import torch
from torch import nn


class Learner(Protocol):
    """An encoder or a reranker, whose model learns."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def device(self) -> torch.device: ...


L = TypeVar("L", bound=Learner)
_L = TypeVar("_L", bound=Learner, contravariant=True)


class Objective(Protocol[_L]):
    def steps(self, epochs: float) -> int:
        """Steps that go through the rows ``epochs`` times."""
        ...

    def backward(self, learner: _L, step: int, /) -> dict[str, float]:
        """Add the gradients of step ``step`` to the learner's parameters; figures of the loss."""
        ...
