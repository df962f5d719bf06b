"""Sleuth's extension points. Any class that satisfies one of these can be named in a config by dotted path."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from sleuth.errors import ScoringError
from sleuth.explanations import Explanation
from sleuth.types import (
    Action,
    Generation,
    Hit,
    Image,
    Observation,
    Passage,
    Probe,
    Question,
    Request,
    Sampling,
    ScoredTrajectory,
    Search,
    Stop,
    ToolAnswer,
    Trajectory,
    Turn,
)

OnToken = Callable[[str, int, float], None]
"""Called as (episode, token id, log-prob) for every token as it is sampled."""


class TextCodec(Protocol):
    """Converts text to tokens and back, separating our own (trusted) text from outside text."""

    eos_token_id: int
    end_token_ids: tuple[int, ...]
    """Each of them ends a generation; EOS is the first."""
    pad_token_id: int
    reserved: frozenset[str]
    """Strings that the tokenizer maps to a single special or added token."""
    bos: str
    """The tokens that the tokenizer itself puts before a text (BOS); empty if it adds none."""

    def encode(self, text: str, *, trusted: bool = False) -> list[int]:
        """Token ids of ``text``; it yields no special tokens unless ``trusted``."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ``token_ids`` for parsing and display, without special tokens."""
        ...

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any] | None = None
    ) -> str | None:
        """The chat template's text up to where the assistant begins; None without a template.

        ``variables`` are the template's own, such as ``enable_thinking``.
        """
        ...


@runtime_checkable
class SeeingCodec(Protocol):
    """The codec of a policy that sees: a page is shown to it as tokens that stand for its picture."""

    def look(self, image: Image) -> Sequence[int]:
        """The token ids of ``image``. Raises DataError if it is damaged."""
        ...


@runtime_checkable
class Policy(Protocol):
    trainable: bool
    """False if token ids or log-probs are unknown; such a policy serves for evaluation and chat only."""

    @property
    def version(self) -> int: ...

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_token: OnToken | None = None
    ) -> list[Generation]:
        """One generation per request, in order, each ending at a stop string, EOS or its token budget.

        A backend may keep an episode's key-value cache until ``release``; the result must depend neither
        on that cache nor on the rest of the batch.
        """
        ...

    def release(self, episodes: Iterable[str]) -> None:
        """Free what is cached for these episodes; unknown ones are ignored."""
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
    """A policy whose requests advance independently: one episode can search while others are still sampling."""

    async def generate_one(self, request: Request, sampling: Sampling, on_token: OnToken | None = None) -> Generation:
        """Like ``generate`` for a single request, from any event loop; cancelling it ends the request."""
        ...


@runtime_checkable
class Retriever(Protocol):
    @property
    def fingerprint(self) -> str:
        """Changes whenever the same query could return different hits."""
        ...

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """At most ``k`` hits for each query, best first, ranks from 1, ids stable across calls.

        Raises ``RetrieverError`` if it cannot search; never returns fewer lists than queries.
        """
        ...


@runtime_checkable
class SearchesImages(Protocol):
    """A retriever that also takes pictures as queries."""

    def search_images(self, images: Sequence[Image], k: int) -> list[list[Hit]]:
        """Like ``Retriever.search``, for each of ``images``. Raises ConfigError if its model reads none, also for no
        images: so it is asked whether it does."""
        ...


@runtime_checkable
class Documents(Protocol):
    """Whole documents, of which a corpus has passages. A retriever offers them as its attribute ``documents``."""

    def document(self, passage_id: str) -> list[Passage]:
        """All passages of the document that has this one, in the order of the corpus; empty if there is none."""
        ...


@runtime_checkable
class Explains(Protocol):
    """A retriever that can say what the scores of its hits are made of: terms, or tokens."""

    def explain(self, query: str, hits: Sequence[Hit]) -> list[Explanation]:
        """An explanation of each of ``hits``, which this retriever gave for ``query``."""
        ...


class Tool(Protocol):
    """What a policy may call besides the search engine. Made once a run; called from several threads at once."""

    @property
    def schema(self) -> Mapping[str, Any]:
        """``{"name", "description", "parameters"}`` as in OpenAI's function calls; parameters are a JSON schema."""
        ...

    def call(self, arguments: Mapping[str, Any], turns: Sequence[Turn]) -> str:
        """The text to show the policy, which counts as outside text. ``turns`` are those of the episode so far.

        Whatever it raises becomes a line to the policy, and is counted: a failure is the policy's to deal with.
        A ToolError is expected, such as wrong arguments; anything else is logged too.
        """
        ...


class Environment(Protocol):
    """One episode as a state machine without I/O. Create a new one for every episode.

    One that has ``answer_opening(transcript)`` says with which text the policy begins an answer where the transcript
    ends in that text: information gain appends it, and an accepted answer.
    """

    stop_strings: tuple[str, ...]

    def reset(self, question: Question) -> Observation | Search:
        """The prompt, or a search to make first, whose hits ``observe`` turns into the prompt."""
        ...

    def step(self, text: str) -> Action:
        """The action in the newly sampled turn. Only the policy's own turns can act or answer."""
        ...

    def observe(self, hits: Sequence[Hit] | None, room: int) -> Observation | Stop:
        """What to insert after the last action, in at most ``room`` tokens, or the end of the episode.

        ``hits`` is None if the last action was not a search.
        """
        ...

    def turn_tokens(self, room: int) -> int:
        """How many tokens the next turn may sample when ``room`` tokens are left in total."""
        ...

    @property
    def total_tokens(self) -> int:
        """The token budget of the whole transcript, prompt included."""
        ...


@runtime_checkable
class ThinkingEnvironment(Environment, Protocol):
    """An environment that knows whether a thought is open, and is asked whether a turn is over."""

    @property
    def thinking(self) -> bool:
        """Whether a thought is open where the next turn begins."""
        ...

    def over(self, text: str, generation: Generation) -> bool:
        """Whether a turn has ended with ``generation``; ``text`` is the whole turn so far.

        Called before ``step``, once for each generation. False: more is sampled, in the same turn.
        """
        ...


@runtime_checkable
class SelectiveEnvironment(Environment, Protocol):
    """An environment that refuses some passages, such as those that it has shown already."""

    def unwanted(self) -> Collection[str] | None:
        """Ids of passages that the next search must not find, nor one of its queries what another has found; further
        passages take their place. None: everything is welcome.
        """
        ...


class ToolEnvironment(Environment, Protocol):
    """An environment whose actions may also be calls of tools, or searches with several queries."""

    def observe_several(self, found: Sequence[Sequence[Hit]], room: int) -> Observation | Stop:
        """Like ``observe`` after a search with several queries; ``found`` has the hits of each."""
        ...

    def observe_call(self, answer: ToolAnswer, room: int) -> Observation | Stop:
        """Like ``observe`` after a call."""
        ...


class Reward(Protocol):
    """Scores a trajectory. Pure: the same question and trajectory always give the same value.

    One that can also judge single turns is a `TurnReward` as well.
    """

    @property
    def name(self) -> str: ...

    def score(self, question: Question, trajectory: Trajectory) -> float | None:
        """The value; None if this reward does not apply to the trajectory.

        Raises ScoringError if it applies but cannot be worked out: the whole trajectory is then unscored.
        """
        ...


@runtime_checkable
class BatchReward(Reward, Protocol):
    """A reward that scores many trajectories faster than one after another, such as one that asks a server."""

    def score_all(self, trajectories: Sequence[Trajectory]) -> Sequence[float | ScoringError | None]:
        """The value of each, in order; where ``score`` would raise a ScoringError, that error in its place."""
        ...


class TurnReward(Protocol):
    """Scores the turns of a trajectory. Pure, like a `Reward`."""

    def score_turns(self, question: Question, trajectory: Trajectory) -> Sequence[float | None] | None:
        """A value for each turn, None for a turn that is not judged; None if this does not apply to the trajectory."""
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
    """Where metrics are written. A sink never raises into training."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...
