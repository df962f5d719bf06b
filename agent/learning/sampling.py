"""Where the trainer's trajectories come from: the model in this process, or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from agent.codec import HFCodec
from agent.learning.rollouts import Driver, GroupRollouts, RolloutRecord
from agent.policies.transformers_policy import TransformersPolicy

Upcoming = Callable[[int], list[str] | None]
"""This process's prompts of the n-th rollout after the one at hand; None past the last."""


class Sampler(Protocol):
    """Gives the trainer a driver whose policy has the trainer's weights, and decides when rollouts are played."""

    stale: bool
    """Whether rollouts may be sampled by weights older than the trainer's."""

    @property
    def driver(self) -> Driver: ...

    def refreshed(self, trainer: Any) -> AbstractContextManager[None]:
        """While this lasts, the driver samples with the weights that the trainer has now."""
        ...

    def play(self, rollouts: GroupRollouts, prompts: list[str], upcoming: Upcoming, trainer: Any, /) -> RolloutRecord:
        """The rollout of ``prompts``, played now or before. Called while ``refreshed``."""
        ...


MakeSampler = Callable[[Any, HFCodec, Callable[[], int]], Sampler]
"""(model, codec, optimizer steps taken so far) to sampler."""


class InProcessSampler:
    """Samples with the model that is trained, turn about."""

    stale = False

    def __init__(self, policy: TransformersPolicy, driver: Driver) -> None:
        self._policy = policy
        self.driver = driver

    @contextmanager
    def refreshed(self, trainer: Any) -> Iterator[None]:
        with gathered(trainer) as model:
            self._policy.model = model
            yield

    def play(self, rollouts: GroupRollouts, prompts: list[str], _upcoming: Upcoming, trainer: Any) -> RolloutRecord:
        return rollouts.play(prompts, int(trainer.state.global_step), place_of(prompts, trainer))


def place_of(prompts: Sequence[str], trainer: Any) -> int:
    """Row of the whole rollout at which this process's ``prompts`` begin."""
    return int(trainer.accelerator.process_index) * len(prompts)


def gathered(trainer: Any) -> AbstractContextManager[Any]:
    """The trainer's model with its weights whole, gathered once however many turns follow."""
    from trl.models import unwrap_model_for_generation

    whole: AbstractContextManager[Any] = unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator)
    return whole
