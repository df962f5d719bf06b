"""Where rollouts come from: a policy in this process, or (``agent/cluster/source.py``) workers elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

from agent.codec import HFCodec
from agent.config import PolicySettings
from agent.learning.rollouts import Driver, GroupRollouts, RolloutRecord
from agent.policies.backends import choose_backend, for_training, open_trainable, policy_around
from agent.policies.probe import probe_tokens
from agent.policies.weights import LiveWeights
from hub.config import LoraSettings
from sleuth.protocols import TrainablePolicy

Upcoming = Callable[[Any, int, int], list[str] | None]
"""(trainer, rows, n) -> prompts of this process's rows in the n-th rollout after the current one, None past the end."""


class RolloutSource(Protocol):
    """The interface that a training step uses."""

    def rollout(self, prompts: list[str], trainer: Any) -> RolloutRecord:
        """The played ``prompts``, this process's rows of the rollout before the trainer's next optimizer step."""
        ...


class PolicySource(RolloutSource, Protocol):
    """A source as a whole run uses it, with the policy that samples."""

    stale: bool
    """Whether rollouts may be sampled with weights older than the trainer's."""
    apart: bool
    """Whether they are sampled by an engine of another kind, whose log-probs may differ from the trainer's."""

    def current(self, trainer: Any) -> AbstractContextManager[Driver]:
        """A driver that samples with the trainer's current weights, valid within the context."""
        ...

    def close(self) -> None: ...


MakeSource = Callable[[Any, HFCodec, GroupRollouts, Upcoming], PolicySource]
"""(the trained model, its codec, how rollouts are played, upcoming prompts) -> a source."""


class LocalSource:
    """Plays with a policy in this process, after loading the trainer's weights; their version is the step.

    ``lent``: the policy samples with the trainer's own model. Otherwise it has separate weights, which are updated.
    """

    stale = False

    def __init__(
        self, policy: TrainablePolicy, driver: Driver, rollouts: GroupRollouts, probe: Sequence[int], *, lent: bool
    ) -> None:
        self.apart = not lent
        self._policy = policy
        self._driver = driver
        self._rollouts = rollouts
        self._probe = probe
        self._lent = lent
        self._loaded: int | None = None

    def rollout(self, prompts: list[str], trainer: Any) -> RolloutRecord:
        with self.current(trainer) as driver, model_for(self._rollouts, trainer, held=self._lent) as model:
            return self._rollouts.play(
                prompts, int(trainer.state.global_step), first_row(len(prompts), trainer), driver, model
            )

    @contextmanager
    def current(self, trainer: Any) -> Iterator[Driver]:
        step = int(trainer.state.global_step)
        with ExitStack() as held:
            if self._lent or step != self._loaded:
                model = held.enter_context(gathered(trainer))
                self._policy.load(LiveWeights(step, model, self._probe))
                self._loaded = step
            if not self._lent:
                held.close()
            yield self._driver
        _tell(self._policy, "rest")

    def close(self) -> None:
        _tell(self._policy, "close")


def local_source(
    settings: PolicySettings,
    name: str,
    lora: LoraSettings | None,
    make_driver: Callable[[Any, HFCodec], Driver],
) -> MakeSource:
    """Makes sources whose policy uses the trained model itself or, if the backend cannot, loads ``name`` again."""

    def make(model: Any, codec: HFCodec, rollouts: GroupRollouts, _upcoming: Upcoming) -> LocalSource:
        chosen = settings.model_copy(update={"backend": choose_backend(settings, name)})
        chosen = for_training(chosen, rollouts.sampling)
        around = policy_around(chosen, name, model, codec)
        policy = around or open_trainable(chosen, name, lora)[0]
        return LocalSource(policy, make_driver(policy, codec), rollouts, probe_tokens(codec), lent=around is not None)

    return make


def first_row(rows: int, trainer: Any) -> int:
    """The position in the whole rollout at which this process's ``rows`` begin."""
    return int(trainer.accelerator.process_index) * rows


def gathered(trainer: Any) -> AbstractContextManager[Any]:
    """The trainer's model with complete weights, gathered once for all following turns."""
    from trl.models import unwrap_model_for_generation

    whole: AbstractContextManager[Any] = unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator)
    return whole


def model_for(rollouts: GroupRollouts, trainer: Any, *, held: bool = False) -> AbstractContextManager[Any]:
    """The trained model, if ``rollouts`` judges turns with it; ``held``: its complete weights are gathered already."""
    if not rollouts.needs_model:
        return nullcontext()
    return nullcontext(trainer.accelerator.unwrap_model(trainer.model_wrapped)) if held else gathered(trainer)


def _tell(policy: TrainablePolicy, what: str) -> None:
    getattr(policy, what, lambda: None)()
