"""A policy as a writer: messages become tokens by its chat template, or as plain text for a base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agent.codec import HFCodec
from agent.writing.asks import Ask, Message, OnReply, Reply, Weigh
from hub.context import context_length
from sleuth.errors import ConfigError
from sleuth.protocols import Policy
from sleuth.types import Generation, Request, Sampling


class PolicyWriter:
    """Writes with ``policy``. A reply is a function of its ask alone, as the policy's generations are.

    ``chat``: in the tokenizer's chat template, where it has one. ``batch_size`` requests are handed to the policy at
    once; ``max_rows`` texts are weighed at once.
    """

    def __init__(
        self,
        policy: Policy,
        codec: HFCodec,
        *,
        name: str | None = None,
        chat: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        batch_size: int = 64,
        max_rows: int = 64,
    ) -> None:
        self._policy = policy
        self._codec = codec
        self._chat = chat
        self._variables = chat_template_kwargs
        self._batch_size = batch_size
        self._max_rows = max_rows
        model = getattr(policy, "model", None)
        config = getattr(model, "config", None)
        self._longest = None if config is None else context_length(config)
        self.name = name or (model if isinstance(model, str) else type(policy).__name__)

    @property
    def reserved(self) -> frozenset[str]:
        return self._codec.reserved

    def write(self, asks: Sequence[Ask], on_reply: OnReply) -> None:
        for batch in _alike(asks, self._batch_size):
            self._write_batch(batch, on_reply)

    def _write_batch(self, asks: Sequence[Ask], on_reply: OnReply) -> None:
        requests: list[tuple[Ask, Request]] = []
        for ask in asks:
            prefix = self._prefix(ask.messages)
            if self._longest is not None and len(prefix) + ask.max_tokens > self._longest:
                on_reply(ask, Reply.failed(f"the prompt has {len(prefix)} tokens, too many for {self._longest}"))
            else:
                requests.append((ask, Request(ask.key, prefix, ask.max_tokens, ask.seed)))
        if not requests:
            return
        first = requests[0][0]
        sampling = Sampling(first.temperature, first.top_p, first.stop)
        made = self._policy.generate([request for _, request in requests], sampling)
        self._policy.release([request.episode for _, request in requests])
        for (ask, request), generation in zip(requests, made, strict=True):
            on_reply(ask, self._reply(ask, request, generation))

    def _reply(self, ask: Ask, request: Request, generation: Generation) -> Reply:
        text = self._codec.decode(generation.token_ids)
        ends = [place for stop in ask.stop if (place := text.find(stop)) >= 0]
        return Reply(
            text[: min(ends)] if ends else text,
            "length" if generation.finish_reason == "length" and not ends else "stop",
            len(request.prefix),
            len(generation.token_ids),
        )

    def weigh(self, asks: Sequence[Weigh]) -> list[float | None]:
        """By one forward pass a text. Raises ConfigError for a backend whose model is not in this process."""
        model = getattr(self._policy, "model", None)
        if model is None or isinstance(model, str):
            raise ConfigError(
                f"{type(self._policy).__name__} does not say how likely a given text is",
                "set writer.policy.backend to transformers",
            )
        from agent.learning.answer_logprobs import mean_logprobs_of

        pairs = [(self._prefix(ask.messages), self._codec.encode(ask.text)) for ask in asks]
        return mean_logprobs_of(model, pairs, self._max_rows)

    def _prefix(self, messages: Sequence[Message]) -> list[int]:
        spoken: list[dict[str, Any]] = [{"role": message.role, "content": message.text} for message in messages]
        text = self._codec.render_chat(spoken, self._variables) if self._chat else None
        return self._codec.encode(self._codec.bos + plain_text(messages) if text is None else text, trusted=True)


def plain_text(messages: Sequence[Message]) -> str:
    """The messages as a text to go on with: a reply stands on the line of what it replies to."""
    parts: list[str] = []
    for message in messages:
        if message.role == "assistant" and parts:
            parts[-1] += f" {message.text}"
        else:
            parts.append(message.text)
    return "\n\n".join(parts)


def _alike(asks: Sequence[Ask], size: int) -> Iterator[list[Ask]]:
    """Batches of at most ``size`` asks that are sampled in the same way, in order of first appearance."""
    groups: dict[tuple[float, float, tuple[str, ...]], list[Ask]] = {}
    for ask in asks:
        groups.setdefault((ask.temperature, ask.top_p, ask.stop), []).append(ask)
    for group in groups.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))
