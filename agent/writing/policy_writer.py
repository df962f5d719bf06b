"""A policy as a writer: messages become tokens by its chat template, or as plain text for a base model."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from agent.codec import HFCodec
from agent.writing.asks import Ask, Message, OnReply, Reply, Weigh, Weight
from sleuth.errors import ConfigError, PolicyError
from sleuth.protocols import Policy
from sleuth.types import Generation, Request, Sampling

log = logging.getLogger("sleuth.writer")

_OPEN_THOUGHT = "<think>"


class PolicyWriter:
    """Writes with ``policy``. A reply is a function of its ask alone, as the policy's generations are.

    ``chat``: in the tokenizer's chat template, where it has one. ``structured``: an engine that can is held to the
    schema of an ask. ``batch_size`` requests are handed to the policy at once; ``max_rows`` texts are weighed at once.
    """

    def __init__(
        self,
        policy: Policy,
        codec: HFCodec,
        *,
        name: str | None = None,
        chat: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        structured: bool = True,
        batch_size: int = 64,
        max_rows: int = 64,
    ) -> None:
        self._policy = policy
        self._codec = codec
        self._chat = chat
        self._variables = chat_template_kwargs
        self._structured = structured
        self._batch_size = batch_size
        self._max_rows = max_rows
        self._longest: int | None = getattr(policy, "context", None)
        model = getattr(policy, "model", None)
        self.name = name or (model if isinstance(model, str) else type(policy).__name__)

    @property
    def reserved(self) -> frozenset[str]:
        return self._codec.reserved

    def write(self, asks: Sequence[Ask], on_reply: OnReply) -> None:
        """Batches are cut of what fits the model alone, so that a resumed run goes on with those of an unbroken one."""
        fitting: list[tuple[Ask, Request]] = []
        for ask in asks:
            request = self._request(ask)
            if self._longest is not None and len(request.prefix) + ask.max_tokens > self._longest:
                why = f"the prompt has {len(request.prefix)} tokens, too many for {self._longest}"
                on_reply(ask, Reply.refused(why))
            else:
                fitting.append((ask, request))
        for batch in _alike(fitting, self._batch_size):
            ask, _ = batch[0]
            made = self._generate([request for _, request in batch], Sampling(ask.temperature, ask.top_p, ask.stop))
            for (ask, request), generation in zip(batch, made, strict=True):
                on_reply(ask, self._reply(ask, request, generation))

    def _request(self, ask: Ask) -> Request:
        """Held to the schema of ``ask``, unless the prompt ends in an open thought, which is no JSON."""
        prompt = self._prompt(ask.messages)
        held = self._structured and ask.schema is not None and not prompt.rstrip().endswith(_OPEN_THOUGHT)
        prefix = self._codec.encode(prompt, trusted=True)
        return Request(ask.key, prefix, ask.max_tokens, ask.seed, schema=json.dumps(ask.schema) if held else None)

    def _generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Generation]:
        """Without schemas from the first time on that the backend refuses them."""
        free = [replace(request, schema=None) for request in requests]
        try:
            return self._sample(requests if self._structured else free, sampling)
        except PolicyError as error:
            if not self._structured or free == list(requests):
                raise
            made = self._sample(free, sampling)  # raises again where the schema was not the reason
            self._structured = False
            log.warning("replies are read as they come: %s", error.message)
            return made

    def _sample(self, requests: Sequence[Request], sampling: Sampling) -> list[Generation]:
        made = self._policy.generate(requests, sampling)
        self._policy.release([request.episode for request in requests])
        return made

    def _reply(self, ask: Ask, request: Request, generation: Generation) -> Reply:
        text = self._codec.decode(generation.token_ids)
        ends = [place for stop in ask.stop if (place := text.find(stop)) >= 0]
        return Reply(
            text[: min(ends)] if ends else text,
            "length" if generation.finish_reason == "length" and not ends else "stop",
            len(request.prefix),
            len(generation.token_ids),
        )

    def weigh(self, asks: Sequence[Weigh]) -> list[Weight]:
        """By one forward pass a text; none for one that is too long for the model.

        Raises ConfigError for a policy that does not report log-probs of given texts.
        """
        pairs = self._fitting([(self._prefix(ask.messages), self._codec.encode(ask.text)) for ask in asks])
        found = self._logprobs(pairs)
        read = [len(prefix) + len(text) if text else 0 for prefix, text in pairs]
        return [Weight(logprob, tokens) for logprob, tokens in zip(found, read, strict=True)]

    def _logprobs(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[float | None]:
        read = getattr(self._policy, "text_logprobs", None)
        if read is not None:
            return _weighed(read, pairs, self._max_rows)
        model = getattr(self._policy, "model", None)
        if model is None or isinstance(model, str):
            raise ConfigError(
                f"{type(self._policy).__name__} does not say how likely a given text is",
                "set writer.policy.backend to transformers or vllm",
            )
        from agent.learning.answer_logprobs import mean_logprobs_of

        return mean_logprobs_of(model, pairs, self._max_rows)

    def _fitting(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
        """Without the texts that the model cannot read after their prefixes."""
        most = math.inf if self._longest is None else self._longest
        left_out = sum(len(prefix) + len(text) > most for prefix, text in pairs)
        if left_out:
            log.warning("%d of %d texts are not weighed: more than %d tokens", left_out, len(pairs), most)
        return [(prefix, text if len(prefix) + len(text) <= most else []) for prefix, text in pairs]

    def _prefix(self, messages: Sequence[Message]) -> list[int]:
        return self._codec.encode(self._prompt(messages), trusted=True)

    def _prompt(self, messages: Sequence[Message]) -> str:
        spoken: list[dict[str, Any]] = [{"role": message.role, "content": message.text} for message in messages]
        text = self._codec.render_chat(spoken, self._variables) if self._chat else None
        return self._codec.bos + plain_text(messages) if text is None else text


def plain_text(messages: Sequence[Message]) -> str:
    """The messages as a text to go on with: a reply stands on the line of what it replies to."""
    parts: list[str] = []
    for message in messages:
        if message.role == "assistant" and parts:
            parts[-1] += f" {message.text}"
        else:
            parts.append(message.text)
    return "\n\n".join(parts)


def _weighed(
    read: Callable[[Sequence[Sequence[int]]], list[list[float]]],
    pairs: Sequence[tuple[list[int], list[int]]],
    size: int,
) -> list[float | None]:
    """The mean log-prob of each text's tokens after its prefix, ``size`` texts at a time; None for an empty text."""
    filled = [place for place, (_, text) in enumerate(pairs) if text]
    found: list[float | None] = [None] * len(pairs)
    for start in range(0, len(filled), size):
        places = filled[start : start + size]
        rows = read([[*pairs[place][0], *pairs[place][1]] for place in places])
        for place, row in zip(places, rows, strict=True):
            found[place] = fmean(row[-len(pairs[place][1]) :])
    return found


def _alike(asks: Sequence[tuple[Ask, Request]], size: int) -> Iterator[list[tuple[Ask, Request]]]:
    """Batches of at most ``size`` asks that are sampled in the same way, in order of first appearance."""
    groups: dict[tuple[float, float, tuple[str, ...]], list[tuple[Ask, Request]]] = {}
    for ask, request in asks:
        groups.setdefault((ask.temperature, ask.top_p, ask.stop), []).append((ask, request))
    for group in groups.values():
        yield from (group[start : start + size] for start in range(0, len(group), size))
