"""Where rollouts come from: a policy in this process, or (``agent/cluster/source.py``) workers elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

from agent.codec import HFCodec
from agent.config import PolicySettings
from agent.learning.rollouts import Driver, GroupRollouts, RolloutRecord
from agent.policies.backends import choose_backend, open_trainable, policy_around
from agent.policies.probe import probe_tokens
from agent.policies.weights import LiveWeights
from hub.config import LoraSettings
from sleuth.protocols import TrainablePolicy

Upcoming = Callable[[Any, int, int], list[str] | None]
"""(trainer, rows, n) to the prompts of this process's rows in the n-th rollout after the one at hand; None past the
last."""


class RolloutSource(Protocol):
    """All that a step of training asks for."""

    def rollout(self, prompts: list[str], trainer: Any) -> RolloutRecord:
        """What came of ``prompts``, this process's rows of the rollout before the trainer's next optimizer step."""
        ...


class PolicySource(RolloutSource, Protocol):
    """A source as a whole run needs it, around the policy that samples."""

    stale: bool
    """Whether rollouts may be sampled by weights older than the trainer's."""

    def current(self, trainer: Any) -> AbstractContextManager[Driver]:
        """A driver that samples with the weights that the trainer has now, while this lasts."""
        ...

    def close(self) -> None: ...


MakeSource = Callable[[Any, HFCodec, GroupRollouts, Upcoming], PolicySource]
"""(the model that is trained, its codec, how a rollout is played, what will be asked for) to a source."""


class LocalSource:
    """Plays with a policy in this process, which is given the trainer's weights first; their version is the step.

    ``lent``: the policy samples with the trainer's own model. Otherwise it has weights of its own, which follow.
    """

    stale = False

    def __init__(
        self, policy: TrainablePolicy, driver: Driver, rollouts: GroupRollouts, probe: Sequence[int], *, lent: bool
    ) -> None:
        self._policy = policy
        self._driver = driver
        self._rollouts = rollouts
        self._probe = probe
        self._lent = lent
        self._loaded: int | None = None

    def rollout(self, prompts: list[str], trainer: Any) -> RolloutRecord:
        with self.current(trainer) as driver:
            return self._rollouts.play(
                prompts, int(trainer.state.global_step), first_row(len(prompts), trainer), driver
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
    """Makes sources whose policy samples with the trained model itself, or opens ``name`` with room for ``lora``."""

    def make(model: Any, codec: HFCodec, rollouts: GroupRollouts, _upcoming: Upcoming) -> LocalSource:
        chosen = settings.model_copy(update={"backend": choose_backend(settings, name)})
        around = policy_around(chosen, name, model, codec)
        policy = around or open_trainable(chosen, name, lora)[0]
        return LocalSource(policy, make_driver(policy, codec), rollouts, probe_tokens(codec), lent=around is not None)

    return make


def first_row(rows: int, trainer: Any) -> int:
    """Where in the whole rollout this process's ``rows`` begin."""
    return int(trainer.accelerator.process_index) * rows


def gathered(trainer: Any) -> AbstractContextManager[Any]:
    """The trainer's model with its weights whole, gathered once however many turns follow."""
    from trl.models import unwrap_model_for_generation

    whole: AbstractContextManager[Any] = unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator)
    return whole


def _tell(policy: TrainablePolicy, what: str) -> None:
    getattr(policy, what, lambda: None)()
