"""A turn while it is being sampled: tokens become text, and text becomes spans labelled with their enclosing tag.

Nothing is re-encoded, and the output does not depend on how the turn was split into tokens or chunks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from sleuth.reserved import ALL_TAGS

_TAG = re.compile(rf"<(/?)({'|'.join(ALL_TAGS)})>")
_SPELLED = tuple(f"<{slash}{name}>" for name in ALL_TAGS for slash in ("", "/"))
_BROKEN = "\ufffd"
"""What decoders emit for invalid or incomplete bytes."""


@dataclass(frozen=True, slots=True)
class Span:
    """Text, or one whole tag. ``inside`` is the enclosing tag, '' for none."""

    kind: Literal["text", "tag"]
    inside: str
    text: str


class TokenText:
    """Decodes a turn token by token. The parts concatenate to the text of all tokens decoded together.

    (One exception: decoders of byte-fallback tokens discard the valid bytes before an invalid one.)

    A token is decoded together with those before it, back to the last that yielded text, since decoders treat the
    first token differently. A character that spans several tokens is emitted with the last of them.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._context = 0
        self._shown = 0

    def feed(self, token: int) -> str:
        """The text that ``token`` completes, possibly none."""
        self._tokens.append(token)
        return self._advance(hold=True)

    def finish(self) -> str:
        """The text of any pending tokens; afterwards ready for another turn."""
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
    """Splits a turn into spans as it arrives. Inside a thought, tags other than its closing tag are mentions."""

    def __init__(self) -> None:
        self._waiting = ""
        self._inside = ""

    def inside_thought(self) -> None:
        """The next turn begins inside a thought that is open already."""
        self._inside = "think"

    def feed(self, text: str) -> list[Span]:
        """The spans that are certain so far; a possible start of a tag is held back."""
        self._waiting += text
        ready = self._waiting[: len(self._waiting) - _unfinished(self._waiting)]
        self._waiting = self._waiting[len(ready) :]
        return self._split(ready)

    def finish(self) -> list[Span]:
        """The held-back text, which is not a tag; afterwards ready for another turn."""
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
    """Length of the longest suffix of ``text`` that could be the start of a tag."""
    tail = text[text.rfind("<") :] if "<" in text else ""
    return len(tail) if tail and tail not in _SPELLED and any(tag.startswith(tail) for tag in _SPELLED) else 0
