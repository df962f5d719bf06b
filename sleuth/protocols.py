"""The seams of Sleuth. Anything that satisfies one of these can be named in a config by dotted path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from sleuth.types import (
    Action,
    Generation,
    Hit,
    Observation,
    Probe,
    Question,
    Request,
    Sampling,
    ScoredTrajectory,
    Search,
    Stop,
    Trajectory,
)

OnToken = Callable[[str, int, float], None]
"""Called as (episode, token id, log-prob) for every token at the moment it is sampled."""


class TextCodec(Protocol):
    """Text to tokens and back, with a line between what we wrote and what came from outside."""

    eos_token_id: int
    pad_token_id: int
    reserved: frozenset[str]
    """Strings that the tokenizer would turn into one special or added token."""
    bos: str
    """What the tokenizer puts before a text of its own accord (a BOS token); empty where it adds nothing."""

    def encode(self, text: str, *, trusted: bool = False) -> list[int]:
        """Token ids of ``text``; no special token can come out of it unless it is ``trusted``."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ``token_ids`` for parsing and display, special tokens left out."""
        ...

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str | None:
        """The chat template's text up to where the assistant begins; None without a template."""
        ...


@runtime_checkable
class Policy(Protocol):
    trainable: bool
    """Whether token ids and log-probs are exact. Where not: good for evaluation and chat only."""

    @property
    def version(self) -> int: ...

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_token: OnToken | None = None
    ) -> list[Generation]:
        """One generation a request, in order, each ended by a stop string, EOS or its budget.

        A backend may keep the key-value cache of an episode until ``release``; the result must not
        depend on it, nor on what else is in the batch.
        """
        ...

    def release(self, episodes: Iterable[str]) -> None:
        """Forget what is kept for these episodes; unknown ones are ignored."""
        ...


class Weights(Protocol):
    """A policy's weights, on loan for the length of a call: they may be a trainer's own memory. Write nothing to them,
    and copy what is to stay.
    """

    @property
    def version(self) -> int:
        """The number of optimizer steps that made them."""
        ...

    @property
    def adapter(self) -> Mapping[str, Any] | None:
        """Settings of the low-rank adapter, in peft's names, whose tensors alone these are; None: all weights."""
        ...

    @property
    def module(self) -> Any | None:
        """The torch module itself where it is in this process. It may be sampled with until the next ``load``."""
        ...

    def tensors(self) -> Mapping[str, Any]:
        """Torch tensors by the names of the module's ``state_dict``."""
        ...

    def probe(self) -> Probe | None:
        """The trainer's own log-probs of a text, by which a policy can tell that it holds these weights."""
        ...


@runtime_checkable
class TrainablePolicy(Policy, Protocol):
    """A policy that takes new weights: alone, beside the trainer or on a worker of a cluster.

    One that has ``rest()`` is told when it will not sample for a while (the trainer may want its GPU), and one that
    has ``close()`` when training is over.
    """

    def load(self, weights: Weights) -> None:
        """Sample with ``weights``, and report their version, from now on. Called between generations only.

        Raises PolicyError when it cannot; then nothing may be sampled before a ``load`` that succeeds.
        """
        ...


@runtime_checkable
class AsyncPolicy(Policy, Protocol):
    """A policy whose requests advance each on its own: an episode that is done searches while others sample."""

    async def generate_one(self, request: Request, sampling: Sampling, on_token: OnToken | None = None) -> Generation:
        """As ``generate`` for one request, from any event loop; cancelling it ends the request."""
        ...


@runtime_checkable
class Retriever(Protocol):
    @property
    def fingerprint(self) -> str:
        """Changes whenever the same query could give other hits."""
        ...

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """For each query at most ``k`` hits, best first, ranks from 1, ids stable across calls.

        Raises ``RetrieverError`` when it could not search; never returns fewer lists than queries.
        """
        ...


class Environment(Protocol):
    """One episode as a state machine without I/O. Make a new one for every episode."""

    stop_strings: tuple[str, ...]

    def reset(self, question: Question) -> Observation | Search:
        """The prompt; or a search to be made first, whose hits ``observe`` turns into the prompt."""
        ...

    def step(self, text: str) -> Action:
        """What the newly sampled turn means. Only a turn of the policy can act or answer."""
        ...

    def observe(self, hits: Sequence[Hit] | None, room: int) -> Observation | Stop:
        """What to insert after the last action, in at most ``room`` tokens; or the end.

        ``hits`` is None when the last action was no search.
        """
        ...

    def turn_tokens(self, room: int) -> int:
        """How many tokens the next turn may sample when ``room`` are left in all."""
        ...

    @property
    def total_tokens(self) -> int:
        """The budget of the whole transcript, prompt included."""
        ...


class Reward(Protocol):
    """Pure: the same question and trajectory always give the same value."""

    @property
    def name(self) -> str: ...

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        """The value; None when this trajectory cannot be judged by it."""
        ...


Advantage = float | Sequence[float]
"""Of a trajectory: one number for all tokens that the policy sampled, or a number for each, observations skipped."""


class Credit(Protocol):
    """Credit assignment: which trajectories, or which of their tokens, become more likely and how much. Pure."""

    def advantages(self, groups: Sequence[Sequence[ScoredTrajectory]]) -> Sequence[Sequence[Advantage]]:
        """An advantage a trajectory. ``groups`` are a rollout's, one a question, without what could not be scored.

        Where a group has nothing to learn from, it is exactly 0 throughout: such a group is called flat.
        """
        ...


class MetricSink(Protocol):
    """Where figures go. A sink never raises into training."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...
