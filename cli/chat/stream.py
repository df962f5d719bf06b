"""A turn while it is being sampled: tokens become text, text becomes spans that know which tag they stand in.

Nothing is encoded again, and what is shown does not depend on how the turn was cut into tokens or chunks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from envs.grammar import TAGS

_TAG = re.compile(rf"<(/?)({'|'.join(TAGS)})>")
_SPELLED = tuple(f"<{slash}{name}>" for name in TAGS for slash in ("", "/"))
_BROKEN = "\ufffd"
"""What decoders write for bytes that are no character, or not yet."""


@dataclass(frozen=True, slots=True)
class Span:
    """Text, or one whole tag. ``inside`` is the tag that the text stands in, '' for none."""

    kind: Literal["text", "tag"]
    inside: str
    text: str


class TokenText:
    """Decodes a turn token by token. The parts, joined, are the text of all its tokens decoded together.

    (But for one kind of nonsense: decoders of byte-fallback tokens give up the good bytes before a bad one.)

    A token is decoded along with those before it, back to the last that gave text: decoders treat the first token
    differently. A character that is spread over tokens waits for its last one.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context = 0
        self._shown = 0

    def feed(self, token: int) -> str:
        """The text that ``token`` completes, maybe none."""
        self._tokens.append(token)
        return self._advance(hold=True)

    def finish(self) -> str:
        """What still waited for a token that did not come; ready for another turn afterwards."""
        rest = self._advance(hold=False)
        self._tokens, self._context, self._shown = [], 0, 0
        return rest

    def _advance(self, hold: bool) -> str:
        before = self._decode(self._tokens[self._context : self._shown])
        now = self._decode(self._tokens[self._context :])
        if len(now) <= len(before) or (hold and now.endswith(_BROKEN)):
            return ""
        self._context, self._shown = self._shown, len(self._tokens)
        return now[len(before) :]


class TagStream:
    """Splits a turn into spans as it comes. Inside a thought, tags other than its end are mentions."""

    def __init__(self) -> None:
        self._waiting = ""
        self._inside = ""

    def feed(self, text: str) -> list[Span]:
        """The spans that are certain by now; what may become a tag waits."""
        self._waiting += text
        ready = self._waiting[: len(self._waiting) - _unfinished(self._waiting)]
        self._waiting = self._waiting[len(ready) :]
        return self._split(ready)

    def finish(self) -> list[Span]:
        """What waited, which is no tag; ready for another turn afterwards."""
        spans = [Span("text", self._inside, self._waiting)] if self._waiting else []
        self._waiting = self._inside = ""
        return spans

    def _split(self, text: str) -> list[Span]:
        spans: list[Span] = []
        position = 0
        for match in _TAG.finditer(text):
            closing, name = match.groups()
            if self._inside == "think" and match.group() != "</think>":
                continue
            if match.start() > position:
                spans.append(Span("text", self._inside, text[position : match.start()]))
            self._inside = "" if closing else name
            spans.append(Span("tag", name, match.group()))
            position = match.end()
        if position < len(text):
            spans.append(Span("text", self._inside, text[position:]))
        return spans


def _unfinished(text: str) -> int:
    """Length of the end of ``text`` that may become a tag."""
    tail = text[text.rfind("<") :] if "<" in text else ""
    return len(tail) if tail and tail not in _SPELLED and any(tag.startswith(tail) for tag in _SPELLED) else 0
