"""What a writer is asked and what it replies. A writer is a language model that is given messages, not an episode."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Ask:
    """One request for text. ``key`` names it within a run; the same key, messages and seed give the same reply.

    ``schema``: a JSON schema that the reply should follow; an engine that can be held to it is.
    """

    key: str
    messages: tuple[Message, ...]
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; ``failure`` says in one line why nothing did. Tokens are 0 where they are unknown.

    ``finish``: ``length`` where the text was cut off, ``failed`` where another attempt may succeed, ``refused`` where
    none can. ``retries``: answers of a server that were busy or broken before this one.
    """

    text: str = ""
    finish: Literal["stop", "length", "failed", "refused"] = "stop"
    prompt_tokens: int = 0
    tokens: int = 0
    failure: str = ""
    retries: int = 0

    @classmethod
    def failed(cls, why: str) -> Reply:
        return cls(finish="failed", failure=why)

    @classmethod
    def refused(cls, why: str) -> Reply:
        return cls(finish="refused", failure=why)


@dataclass(frozen=True, slots=True)
class Weigh:
    """How likely ``text`` is as the reply to these messages."""

    key: str
    messages: tuple[Message, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Weight:
    """The mean log-prob of a token of a text, in nats; None for one without tokens.

    ``tokens``: what was read for it, the prompt's and its own.
    """

    logprob: float | None
    tokens: int = 0


OnReply = Callable[[Ask, Reply], None]


@runtime_checkable
class Writer(Protocol):
    """Writes text to order. Any class that satisfies this can be named in a config by dotted path."""

    @property
    def name(self) -> str:
        """What is written down beside every row: the model."""
        ...

    @property
    def reserved(self) -> frozenset[str]:
        """Strings that its tokenizer takes for control tokens; outside text must not hold them."""
        ...

    def write(self, asks: Sequence[Ask], on_reply: OnReply) -> None:
        """Call ``on_reply`` once for every ask, in any order, in the caller's thread, as soon as its reply is there.

        A failure of one ask is its reply. Raises PolicyError where no ask can succeed, such as for a wrong key.
        """
        ...


@runtime_checkable
class Weighing(Protocol):
    """A writer that can say how likely a text is."""

    def weigh(self, asks: Sequence[Weigh]) -> list[Weight]:
        """How likely each text is, in order; with no asks, whether it can be said.

        Not known of a text without tokens, or of one that is too long for the model. Raises ConfigError.
        """
        ...
