"""The policy behind an OpenAI-compatible server: for evaluation and chat, with any engine that serves completions.

With a server that accepts and returns token ids (such as vLLM), the transcript is exact. Other servers get text:
their answers are tokenised here, their log-probs are unknown, and such a policy is not trainable.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from agent.codec import HFCodec
from agent.policies.config import OpenAISettings
from agent.policies.openai_client import CompletionsClient, json_form
from agent.seams import decode_all
from sleuth.errors import PolicyError
from sleuth.protocols import OnToken
from sleuth.types import FinishReason, Generation, Request, Sampling

_SEED_BITS = 2**63 - 1


class OpenAIPolicy:
    """Completions of ``model`` at the server that ``settings`` names; ``model`` None takes the only one served.

    ``trainable`` says that token ids and log-probs are known. Its weights are the server's: ``version``
    stays 0, and training refuses it.
    """

    def __init__(self, settings: OpenAISettings, codec: HFCodec, model: str | None) -> None:
        self._client = CompletionsClient(settings)
        self._codec = codec
        served = self._client.models() if model is None or settings.tokens == "auto" else []
        self.model = model or _only(served, settings.base_url)
        owners = {str(m.get("owned_by", "")) for m in served}
        self.trainable = settings.tokens == "always" or (settings.tokens == "auto" and "vllm" in owners)
        self._pool = ThreadPoolExecutor(settings.concurrency, thread_name_prefix="completions")

    @property
    def version(self) -> int:
        return 0

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, on_token: OnToken | None = None
    ) -> list[Generation]:
        if len(requests) == 1:  # in the caller's thread, where Ctrl-C closes the connection
            return [self._one(requests[0], sampling, on_token)]
        return list(self._pool.map(lambda request: self._one(request, sampling, on_token), requests))

    async def generate_one(self, request: Request, sampling: Sampling, on_token: OnToken | None = None) -> Generation:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._one, request, sampling, on_token)

    def release(self, episodes: Iterable[str]) -> None:
        """Nothing to release; the server's prefix cache matches an episode by its tokens."""

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._client.close()

    def _one(self, request: Request, sampling: Sampling, on_token: OnToken | None) -> Generation:
        ask = self._in_tokens if self.trainable else self._in_text
        return ask(request, self._body(request, sampling), sampling, on_token)

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        if sampling.full_logprobs and sampling.top_p < 1.0:
            raise PolicyError(
                "a server's log-probs are those of the nucleus that it samples from, or unknown",
                "with grpo.top_p below 1, set policy.backend to transformers or vllm",
            )
        return {
            "model": self.model,
            "max_tokens": request.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": list(sampling.stop),
            "seed": request.seed & _SEED_BITS,
            **({} if request.schema is None else {"response_format": json_form(json.loads(request.schema))}),
        }

    def _in_tokens(
        self, request: Request, body: dict[str, Any], sampling: Sampling, on_token: OnToken | None
    ) -> Generation:
        body |= {"prompt": list(request.prefix), "return_token_ids": True, "logprobs": 0}
        body |= {
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }  # stop strings may be such tokens
        body["stop_token_ids"] = list(self._codec.end_token_ids)
        ids: list[int] = []
        logprobs: list[float] = []
        end: str | None = None
        for piece in self._client.stream(body) if on_token else [self._client.complete(body)]:
            fresh, values = piece.get("token_ids"), (piece.get("logprobs") or {}).get("token_logprobs")
            if fresh is None or values is None or len(fresh) != len(values):
                raise PolicyError(
                    f"{self._client.settings.base_url} returns no token ids with log-probs",
                    "set policy.openai.tokens to never; such a policy can be evaluated, not trained",
                )
            ids, logprobs = [*ids, *fresh], [*logprobs, *values]
            end = _end_of(piece, sampling.stop) or end
            for token, value in zip(fresh, values, strict=True) if on_token else ():
                on_token(request.episode, token, value)  # type: ignore[misc]
        return _generation(ids, logprobs, end, self._client.settings.base_url)

    def _text_of(self, prefix: Sequence[int]) -> str:
        """The prefix in text, without the start that the server's tokenizer adds again."""
        tokenizer = self._codec.tokenizer
        first = 1 if self._codec.bos and prefix[0] == tokenizer.bos_token_id else 0
        return decode_all(tokenizer, list(prefix[first:]))

    def _in_text(
        self, request: Request, body: dict[str, Any], sampling: Sampling, on_token: OnToken | None
    ) -> Generation:
        body["prompt"] = self._text_of(request.prefix)
        if self._codec.special_tags:  # servers leave special tokens out of their text, and look for no stop in them
            body["skip_special_tokens"] = False
        text, finish, said = "", None, None
        for piece in self._client.stream(body) if on_token else [self._client.complete(body)]:
            fresh = str(piece.get("text") or "")
            text += fresh
            finish = piece.get("finish_reason") or finish
            said = piece.get("stop_reason") or said
            for token in self._codec.encode(fresh, trusted=True) if on_token else ():
                on_token(request.episode, token, 0.0)  # type: ignore[misc]
        closing = None
        if finish == "stop":  # some servers say which stop string they cut off
            closing = str(said) if said in sampling.stop else _cut_stop(text, sampling.stop)
        stopped = closing is not None or any(stop in text for stop in sampling.stop)
        ids = self._codec.encode(text + (closing or ""), trusted=True)
        for token in self._codec.encode(closing, trusted=True) if on_token and closing else ():
            on_token(request.episode, token, 0.0)  # type: ignore[misc]
        end = "stop" if stopped else "length" if finish == "length" else "eos"
        return _generation(ids or [self._codec.eos_token_id], [], end, self._client.settings.base_url)


def _end_of(piece: Mapping[str, Any], stop: Sequence[str]) -> str | None:
    """How a completion ended; None while it continues. ``stop_reason`` is the stop string."""
    finish = piece.get("finish_reason")
    if finish == "stop":
        return "stop" if piece.get("stop_reason") in stop else "eos"
    return str(finish) if finish else None


def _generation(ids: Sequence[int], logprobs: Sequence[float], end: str | None, url: str) -> Generation:
    reasons: dict[str | None, FinishReason] = {"stop": "stop", "eos": "eos", "length": "length"}
    if end not in reasons or not ids:
        raise PolicyError(f"{url} ended a completion of {len(ids)} tokens with '{end}'", "see the server's log")
    return Generation(tuple(ids), tuple(logprobs), reasons[end], 0)


def _cut_stop(text: str, stop: Sequence[str]) -> str | None:
    """The stop string that the server cut off: the closing tag of the last unclosed opening tag."""
    positions = {tag: text.rfind("<" + tag[2:]) for tag in stop if tag.startswith("</") and tag not in text}
    opened = {tag: position for tag, position in positions.items() if position >= 0}
    return max(opened, key=lambda tag: opened[tag], default=None)


def _only(served: Sequence[Mapping[str, Any]], url: str) -> str:
    if not served:
        raise PolicyError(f"{url} serves no model", "start it with one")
    if len(served) > 1:
        names = ", ".join(str(m["id"]) for m in served)
        raise PolicyError(f"{url} serves several models", f"set policy.model to one of: {names}")
    return str(served[0]["id"])
