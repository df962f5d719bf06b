"""A client of OpenAI-compatible completions: one request, its retries, its stream, its errors in one line."""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import httpx

from agent.policies.config import OpenAISettings
from agent.policies.neutral import NEUTRAL
from sleuth.errors import PolicyError, did_you_mean
from sleuth.retries import PASSING, pause, wished_pause

log = logging.getLogger("sleuth.policy")


class RefusedError(PolicyError):
    """A refusal of the request itself; ``reason`` is the whole answer."""

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class UnreachableError(PolicyError):
    """No answer came, however often it was asked for."""


class BrokenAnswerError(PolicyError):
    """What came is no answer, as where a proxy has cut it off: the same request may succeed later."""


class DeniedError(PolicyError):
    """This request is denied, and maybe every other: a key without rights, a wrong address, or a policy of content."""


class CompletionsClient:
    """Talks to ``settings.base_url`` with pooled connections; safe to use from several threads.

    Every failure is a PolicyError with the server and a hint. Timeouts, broken connections and temporary statuses
    are retried with growing pauses, or those that the server wishes. ``NEUTRAL`` settings of sampling that the server
    refuses by name are left out from then on. ``section`` is where the user has written ``settings``, for hints.
    """

    def __init__(self, settings: OpenAISettings, section: str = "policy.openai") -> None:
        self.settings = settings
        self._section = section
        self._unknown: frozenset[str] = frozenset()
        self._learning = threading.Lock()
        key = os.environ.get(settings.key_variable)
        limits = httpx.Limits(
            max_connections=settings.concurrency + 1, max_keepalive_connections=settings.concurrency + 1
        )
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(settings.timeout_s, connect=min(10.0, settings.timeout_s)),
            limits=limits,
        )

    def models(self) -> list[dict[str, Any]]:
        """The models that the server lists, each with its ``id``."""
        listed = self._json("GET", "/models", None).get("data")
        if not isinstance(listed, list) or not all(isinstance(m, dict) and "id" in m for m in listed):
            raise PolicyError(
                f"{self.settings.base_url}/models lists no models",
                f"is {self._section}.base_url the API's root (…/v1)?",
            )
        return listed

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The first choice of one completion."""
        answer = _parsed(self._ask(body), f"{self.settings.base_url}/completions")
        return _choice(answer, self.settings.base_url)

    def chat(self, body: Mapping[str, Any], on_retry: Callable[[], None] | None = None) -> dict[str, Any]:
        """The whole answer to a chat completion, with its first choice and, from most servers, ``usage``.

        ``on_retry`` is called for every answer that was busy, or did not come, and is asked for again.
        """
        answer = self._json("POST", "/chat/completions", body, on_retry)
        choice = _choice(answer, self.settings.base_url)
        if not isinstance(choice.get("message"), dict):
            raise BrokenAnswerError(f"{self.settings.base_url} answered without a message")
        return answer

    def stream(self, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of one completion as they arrive; closing the iterator cancels it.

        Only connecting is retried: chunks that have been streamed cannot be withdrawn.
        """
        response = self._ask({**body, "stream": True}, stream=True)
        try:
            for line in response.iter_lines():
                payload = line.removeprefix("data:").strip()
                if line.startswith("data:") and payload != "[DONE]":
                    piece = json.loads(payload)
                    if "error" in piece:
                        raise PolicyError(f"{self.settings.base_url} broke off: {_reason(piece)}")
                    if piece.get("choices"):
                        yield piece["choices"][0]
        except (httpx.HTTPError, ValueError, RecursionError) as error:
            raise PolicyError(f"{self.settings.base_url} broke off while streaming: {error}", "try again") from error
        finally:
            response.close()

    def close(self) -> None:
        self._http.close()

    def _ask(self, body: Mapping[str, Any], *, stream: bool = False) -> httpx.Response:
        """Request a completion with those of the ``NEUTRAL`` settings that the server knows."""
        unknown = self._unknown
        while True:
            known = {name: value for name, value in NEUTRAL.items() if name not in unknown}
            try:
                response = self._send("POST", "/completions", {**known, **body}, stream=stream)
            except RefusedError as error:
                named = {name for name in known if re.search(rf"\b{name}\b", error.reason)}
                if error.status not in (400, 422) or not named:
                    raise
                unknown |= named
            else:
                self._learn(unknown)
                return response

    def _learn(self, unknown: frozenset[str]) -> None:
        with self._learning:
            fresh = sorted(unknown - self._unknown)
            self._unknown |= unknown
        if fresh:
            log.warning(
                "%s does not know %s: what the generation_config.json of its model says there stays in force",
                self.settings.base_url,
                ", ".join(fresh),
            )

    def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        on_retry: Callable[[], None] | None = None,
    ) -> dict[str, Any]:
        return _parsed(self._send(method, path, body, on_retry=on_retry), self.settings.base_url + path)

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        stream: bool = False,
        on_retry: Callable[[], None] | None = None,
    ) -> httpx.Response:
        attempts = self.settings.retries + 1
        for attempt in range(attempts):
            last, wished = attempt == attempts - 1, 0.0
            try:
                request = self._http.build_request(method, self.settings.base_url + path, json=body)
                response = self._http.send(request, stream=stream)
                if response.is_success:
                    return response
                response.read()
                if last or response.status_code not in PASSING:
                    self._refused(response, body)
                wished = wished_pause(response.headers)
            except httpx.TransportError as error:
                if last:
                    self._unreachable(error, attempts)
            except httpx.RequestError as error:  # its body is not packed as it says, or it leads elsewhere for ever
                raise BrokenAnswerError(f"{self.settings.base_url} sent no answer that can be read: {error}") from error
            if on_retry is not None:
                on_retry()
            pause(attempt, wished)
        raise AssertionError("unreachable")

    def _unreachable(self, error: httpx.TransportError, attempts: int) -> NoReturn:
        url = self.settings.base_url
        if isinstance(error, httpx.ConnectError):
            raise UnreachableError(
                f"no server answers at {url}", f"start it, or set {self._section}.base_url"
            ) from error
        if isinstance(error, httpx.TimeoutException):
            raise UnreachableError(
                f"{url} did not answer within {self.settings.timeout_s:g} s, {attempts} times",
                f"raise {self._section}.timeout_s or lower {self._section}.concurrency",
            ) from error
        raise UnreachableError(f"the connection to {url} failed: {error or type(error).__name__}") from error

    def _refused(self, response: httpx.Response, body: Mapping[str, Any] | None) -> NoReturn:
        url, status = self.settings.base_url, response.status_code
        try:
            reason = _reason(response.json())
        except (ValueError, RecursionError):
            reason = response.text.strip()[:200]
        variable = self.settings.key_variable
        state = "refused" if os.environ.get(variable) else "not set"
        if status == 401:
            raise PolicyError(f"{url} rejects the key (status {status})", f"${variable} is {state}: set it to the key")
        if status == 403:
            raise DeniedError(f"{url} denies the request (status {status}): {reason}", f"${variable} is {state}")
        if status == 404 and body and "model" in body:
            served = [str(model["id"]) for model in self.models()]
            if body["model"] not in served:
                raise PolicyError(f"{url} serves no model '{body['model']}'", did_you_mean(str(body["model"]), served))
        if status == 404:
            raise DeniedError(f"{url} has no completions", f"is {self._section}.base_url the API's root (…/v1)?")
        message = f"{url} refuses the request (status {status}): {reason or 'it does not say why'}"
        raise RefusedError(message, status, response.text)


def json_form(schema: Mapping[str, Any]) -> dict[str, Any]:
    """``response_format`` of a reply in JSON by ``schema``."""
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": dict(schema), "strict": True}}


def _parsed(response: httpx.Response, url: str) -> dict[str, Any]:
    try:
        answer = response.json()
    except (ValueError, RecursionError) as error:
        raise BrokenAnswerError(f"{url} does not answer in JSON", "is base_url the API's root (…/v1)?") from error
    if not isinstance(answer, dict):
        raise BrokenAnswerError(f"{url} answers with JSON that is not an object")
    return answer


def _choice(answer: Mapping[str, Any], url: str) -> dict[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise BrokenAnswerError(f"{url} answered without a completion")
    return choices[0]


def _reason(answer: Any) -> str:
    """The server's error message, on one line."""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:300]
