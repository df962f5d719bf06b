"""Rollouts by an engine with weights of its own, which is given the trainer's before it samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from agent.codec import HFCodec
from agent.config import PolicySettings
from agent.learning.rollouts import Driver, GroupRollouts, RolloutRecord
from agent.learning.sampling import MakeSampler, Upcoming, gathered, place_of
from agent.policies.probe import make_probe, probe_tokens
from hub.config import LoraSettings
from sleuth.protocols import Policy

if TYPE_CHECKING:
    import torch

    from agent.policies.vllm_policy import VllmPolicy


class EngineSampler:
    """Pushes the trainer's weights when an optimizer step has changed them, checked on a probe; version = step.

    ``sleeps`` has the engine give its GPU memory back while the trainer works.
    """

    stale = False

    def __init__(self, policy: VllmPolicy, driver: Driver, codec: HFCodec, *, sleeps: bool = False) -> None:
        self.driver = driver
        self._policy = policy
        self._probe = probe_tokens(codec)
        self._sleeps = sleeps
        self._pushed: int | None = None

    @contextmanager
    def refreshed(self, trainer: Any) -> Iterator[None]:
        step = int(trainer.state.global_step)
        if self._sleeps and self._pushed is not None:
            self._policy.wake()
        if step != self._pushed:
            with gathered(trainer) as model:
                self._policy.update(step, weights_of(model), make_probe(model, self._probe))
            self._pushed = step
        yield
        if self._sleeps:
            self._policy.sleep()

    def play(self, rollouts: GroupRollouts, prompts: list[str], _upcoming: Upcoming, trainer: Any) -> RolloutRecord:
        return rollouts.play(prompts, int(trainer.state.global_step), place_of(prompts, trainer))

    def close(self) -> None:
        self._policy.close()


def vllm_sampler(
    settings: PolicySettings,
    model_name: str,
    lora: LoraSettings | None,
    make_driver: Callable[[Policy, HFCodec], Driver],
) -> MakeSampler:
    """Makes samplers that have a vLLM engine of ``model_name``, with room for the trainer's adapter."""

    def make(_model: Any, codec: HFCodec, _steps: Callable[[], int]) -> EngineSampler:
        from agent.policies.vllm_policy import open_vllm_policy

        policy, _ = open_vllm_policy(settings, model_name, lora)
        return EngineSampler(policy, make_driver(policy, codec), codec, sleeps=settings.vllm.sleep)

    return make


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    """What an engine needs of ``model``: all its weights, or those of the adapter that is trained."""
    state: dict[str, torch.Tensor] = model.state_dict()
    if not hasattr(model, "peft_config"):
        return state
    return {name: value for name, value in state.items() if ".default." in name}
