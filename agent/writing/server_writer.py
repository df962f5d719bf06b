"""A server of OpenAI's chat completions as a writer: many requests at a time, each retried until it is answered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

from agent.policies.config import OpenAISettings
from agent.policies.openai_client import (
    BrokenAnswerError,
    CompletionsClient,
    DeniedError,
    RefusedError,
    UnreachableError,
    json_form,
)
from agent.writing.asks import Ask, OnReply, Reply
from sleuth.errors import PolicyError
from sleuth.retries import PASSING, pause

log = logging.getLogger("sleuth.writer")

_CONTROL_TOKENS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>"),
    *("<|end_header_id|>", "<s>", "</s>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<bos>"),
    *("<eos>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<｜User｜>", "<｜Assistant｜>"),
)
"""Control tokens of common chat templates: a server's tokenizer is not known here."""
_REFUSES = (400, 422)
_FEW = 3
"""Requests that must be left without any answer before the rest are not made."""


class ServerWriter:
    """Asks ``server``. A request that fails is a failed reply; the others go on, as long as the server is there.

    ``model`` None: the only one that is served. ``structured``: replies are asked for by JSON schema.
    """

    def __init__(
        self, server: OpenAISettings, model: str | None, *, structured: bool, extra_body: Mapping[str, Any]
    ) -> None:
        self._server = server
        self._client = CompletionsClient(server, section="writer")
        self._structured = structured
        self._extra_body = dict(extra_body)
        self._answered = False  # ever
        self.name = model or self._only_model()

    @property
    def reserved(self) -> frozenset[str]:
        return frozenset(_CONTROL_TOKENS)

    def write(self, asks: Sequence[Ask], on_reply: OnReply) -> None:
        """Raises PolicyError for a wrong key or name, and where the server is away.

        It is away if nothing has ever come from it, or if a request gets no answer and its list of models does not
        come either: a single request may be one that it cannot serve.
        """
        pool = ThreadPoolExecutor(self._server.concurrency, thread_name_prefix="writer")
        lost: list[str] = []
        try:
            waiting = {pool.submit(self._one, ask): ask for ask in asks}
            for done in as_completed(waiting):
                reply, came = done.result()
                self._answered = self._answered or came
                lost += [] if came else [reply.failure]
                if not self._answered and len(lost) >= max(_FEW, min(len(asks), self._server.concurrency)):
                    raise PolicyError(f"the first {len(lost)} requests failed: {lost[-1]}", "--resume goes on")
                on_reply(waiting[done], reply)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if lost and not self._is_there():
            raise PolicyError(f"{len(lost)} requests failed: {lost[-1]}", "--resume goes on")

    def _is_there(self) -> bool:
        try:
            self._client.models()
        except UnreachableError:
            return False
        except PolicyError:  # it answers, if not what it was asked for
            return True
        return True

    def _only_model(self) -> str:
        served = [str(model["id"]) for model in self._client.models()]
        if len(served) != 1:
            named = f"one of: {', '.join(served)}" if served else "its name"
            raise PolicyError(f"{self._server.base_url} serves {len(served)} models", f"set writer.model to {named}")
        return served[0]

    def _one(self, ask: Ask) -> tuple[Reply, bool]:
        """The reply, and whether anything came from the server at all.

        A failure of this request alone is a reply. Raises PolicyError for what every request would get.
        """
        retries: list[Ask] = []

        def again() -> None:
            retries.append(ask)

        reply, came = self._tried(ask, again)
        return replace(reply, retries=len(retries)), came

    def _tried(self, ask: Ask, on_retry: Callable[[], None]) -> tuple[Reply, bool]:
        for attempt in range(self._server.retries + 1):
            try:
                return _read(self._chat(ask, on_retry)), True
            except RefusedError as error:
                passing = error.status in PASSING
                return Reply.failed(error.message) if passing else Reply.refused(error.message), True
            except (UnreachableError, DeniedError) as error:
                return Reply.failed(error.message), False
            except BrokenAnswerError as error:
                if attempt == self._server.retries:
                    return Reply.failed(error.message), True
            on_retry()
            pause(attempt)
        raise AssertionError("unreachable")

    def _chat(self, ask: Ask, on_retry: Callable[[], None]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            "messages": [{"role": message.role, "content": message.text} for message in ask.messages],
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "top_p": ask.top_p,
            "seed": ask.seed % 2**31,
            **({"stop": list(ask.stop)} if ask.stop else {}),
            **self._extra_body,
        }
        if ask.schema is None or not self._structured:
            return self._client.chat(body, on_retry)
        try:
            return self._client.chat({**body, "response_format": json_form(ask.schema)}, on_retry)
        except RefusedError as error:
            if error.status not in _REFUSES:
                raise
            answer = self._client.chat(body, on_retry)  # raises again where the form was not the reason
            self._structured = False
            log.warning("%s takes no JSON schema: replies are read as they come", self._server.base_url)
            return answer


def _read(answer: Mapping[str, Any]) -> Reply:
    choice, usage = answer["choices"][0], answer.get("usage")
    text = choice.get("message", {}).get("content")
    prompt, tokens = (_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
    text = text if isinstance(text, str) else ""
    return Reply(text, "length" if choice.get("finish_reason") == "length" else "stop", prompt, tokens)


def _count(usage: object, name: str) -> int:
    """0 where the server does not say, or says what is no count."""
    value = usage.get(name) if isinstance(usage, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
