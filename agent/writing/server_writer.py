"""A server of OpenAI's chat completions as a writer: many requests at a time, each retried until it is answered."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from agent.policies.config import OpenAISettings
from agent.policies.openai_client import (
    BrokenAnswerError,
    CompletionsClient,
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


class ServerWriter:
    """Asks ``server``. A request that fails for good is a failed reply; the others go on.

    ``model`` None: the only one that is served. ``structured``: replies are asked for by JSON schema.
    """

    def __init__(
        self, server: OpenAISettings, model: str | None, *, structured: bool, extra_body: Mapping[str, Any]
    ) -> None:
        self._server = server
        self._client = CompletionsClient(server, section="writer")
        self._structured = structured
        self._extra_body = dict(extra_body)
        self.name = model or self._only_model()

    @property
    def reserved(self) -> frozenset[str]:
        return frozenset(_CONTROL_TOKENS)

    def write(self, asks: Sequence[Ask], on_reply: OnReply) -> None:
        pool = ThreadPoolExecutor(self._server.concurrency, thread_name_prefix="writer")
        failed: list[str] = []
        answered = False
        try:
            waiting = {pool.submit(self._one, ask): ask for ask in asks}
            for done in as_completed(waiting):
                reply, away = done.result()
                answered = answered or not away
                failed += [reply.failure] if away else []
                if not answered and len(failed) >= min(len(asks), self._server.concurrency):
                    raise PolicyError(f"the first {len(failed)} requests failed: {failed[-1]}", "--resume goes on")
                on_reply(waiting[done], reply)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _only_model(self) -> str:
        served = [str(model["id"]) for model in self._client.models()]
        if len(served) != 1:
            named = f"one of: {', '.join(served)}" if served else "its name"
            raise PolicyError(f"{self._server.base_url} serves {len(served)} models", f"set writer.model to {named}")
        return served[0]

    def _one(self, ask: Ask) -> tuple[Reply, bool]:
        """The reply, and whether there is none because the server is away, busy or broken.

        A failure of this request alone is a reply. Raises PolicyError for what every request would get.
        """
        for attempt in range(self._server.retries + 1):
            try:
                return _read(self._chat(ask)), False
            except RefusedError as error:
                return Reply.failed(error.message), error.status in PASSING
            except UnreachableError as error:
                return Reply.failed(error.message), True
            except BrokenAnswerError as error:
                if attempt == self._server.retries:
                    return Reply.failed(error.message), True
            pause(attempt)
        raise AssertionError("unreachable")

    def _chat(self, ask: Ask) -> dict[str, Any]:
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
            return self._client.chat(body)
        try:
            return self._client.chat({**body, "response_format": json_form(ask.schema)})
        except RefusedError as error:
            if error.status not in _REFUSES:
                raise
            answer = self._client.chat(body)  # raises again where the form was not the reason
            self._structured = False
            log.warning("%s takes no JSON schema: replies are read as they come", self._server.base_url)
            return answer


def _read(answer: Mapping[str, Any]) -> Reply:
    choice, usage = answer["choices"][0], answer.get("usage") or {}
    text = choice.get("message", {}).get("content")
    prompt, tokens = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
    if not isinstance(text, str) or not text.strip():
        return Reply("", "failed", prompt, tokens, "the server sent no text")
    return Reply(text, "length" if choice.get("finish_reason") == "length" else "stop", prompt, tokens)
