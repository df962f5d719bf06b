"""Reads what a language model wrote, tolerantly: JSON among other words, lines with labels, yes and no."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from workflows.synthesis.script import Unreadable

_LABEL = re.compile(
    r"^\s*(?:[-*•]\s+|\d{1,3}[.)]\s+)?\**(?:search |web )?"
    r"(?:query|question|rewritten[\w ]*|answer|output)\**\s*[:：]\**\s*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,3}[.)]|\[\d{1,3}\])\s+")
_JSON_START = re.compile(r'(?:```(?:json)?)?\s*[\[{]\s*"')
_ITEM = re.compile(r'"(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"(?=\s*[,\]])')
_QUOTES = "\"'“”‘’«»`"
_COMMA = re.compile(r",(\s*[}\]])")
_YES_NO = re.compile(r"\b(yes|no)\b", re.IGNORECASE)


def whole(text: str) -> str:
    """The reply without the thoughts before it and the space around it."""
    found = text.rpartition("</think>")[2].strip()
    if not found:
        raise Unreadable("empty")
    if found.startswith("<think>"):
        raise Unreadable("a thought without end")
    return sound(found)


def line(text: str) -> str:
    """The first line that says something, without a label, a bullet or quotes around it."""
    for row in whole(text).splitlines():
        cleaned = _unquoted(_BULLET.sub("", _LABEL.sub("", row)).strip())
        if cleaned:
            return cleaned
    raise Unreadable("empty")


def lines(text: str) -> list[str]:
    """Every line that says something: a JSON array of strings, alone or in an object, or a list with bullets or not."""
    try:
        rows = [sound(one) for one in json_list(text) if isinstance(one, str)]
    except Unreadable:
        rows = _whole_items(whole(text))
    if not rows and not _JSON_START.match(whole(text)):
        every = whole(text).splitlines()
        rows = [row for row in every if _BULLET.match(row)] or every
    found = [cleaned for row in rows if (cleaned := _unquoted(_BULLET.sub("", row).strip()))]
    if not found:
        raise Unreadable("no list")
    return list(dict.fromkeys(found))


def _whole_items(body: str) -> list[str]:
    """The strings of a JSON array that is cut off, as far as they are whole; none of what does not begin as JSON."""
    items = _ITEM.findall(body[body.find("[") + 1 :]) if _JSON_START.match(body) else []
    return [sound(json.loads(item, strict=False)) for item in items]


def yes_no(text: str) -> bool:
    """The first yes or no."""
    found = _YES_NO.search(whole(text))
    if found is None:
        raise Unreadable("neither yes nor no")
    return found[1].lower() == "yes"


def record(*keys: str) -> Callable[[str], dict[str, str]]:
    """A reader of a JSON object whose ``keys`` are texts; others are dropped."""

    def read(text: str) -> dict[str, str]:
        value = json_value(text)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, dict):
            raise Unreadable("no JSON object")
        found: dict[str, str] = {}
        for key in keys:
            given = value.get(key)
            if not isinstance(given, str) or not given.strip():
                raise Unreadable(f"no {key}")
            found[key] = sound(given.strip())
        return found

    return read


def json_list(text: str) -> list[Any]:
    """The first JSON array, or that of an object with nothing else. Raises Unreadable."""
    value = json_value(text)
    only = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value
    if not isinstance(only, list):
        raise Unreadable("no list")
    return only


def json_value(text: str) -> Any:
    """The first JSON object or array in ``text`` that can be read.

    Fences and words around it do not matter, nor do line breaks in strings, commas before brackets or Python's quotes.
    """
    body = whole(text)
    for start in _starts(body):
        end = _end(body, start)
        if end is None:
            continue
        for attempt in _repairs(body[start:end]):
            try:
                return json.loads(attempt, strict=False)
            except (ValueError, RecursionError):
                continue
        literal = _literal(body[start:end])
        if literal is not None:
            return literal
    raise Unreadable("no JSON")


def sound(text: str) -> str:
    """``text`` without what no encoding can hold: half a surrogate pair, NUL."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def _starts(text: str) -> Iterator[int]:
    places = [match.start() for match in re.finditer(r"[{\[]", text)]
    yield from places[:20]


def _end(text: str, start: int) -> int | None:
    """Where the bracket at ``start`` is closed; brackets in strings do not count. None: it is not."""
    depth, quoted, escaped = 0, False, False
    for place in range(start, len(text)):
        char = text[place]
        if escaped:
            escaped = False
        elif quoted:
            escaped, quoted = char == "\\", char != '"'
        elif char == '"':
            quoted = True
        elif char in "{[":
            depth += 1
        elif char in "}]":
            depth -= 1
            if depth == 0:
                return place + 1
    return None


def _repairs(text: str) -> Sequence[str]:
    return [text, _COMMA.sub(r"\1", text)]


def _literal(text: str) -> Any:
    """A Python literal, as models that were taught Python write JSON; None for anything else."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None
    return value if isinstance(value, dict | list) else None


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] in _QUOTES and text[-1] in _QUOTES:
        return text[1:-1].strip()
    return text
