"""Reads what a language model wrote, tolerantly: JSON among other words, lines with labels, yes and no."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from workflows.synthesis.script import Unreadable

T = TypeVar("T")

_LABEL = re.compile(
    r"^\s*(?:[-*•]\s+|\d{1,3}[.)]\s+)?\**(?:search |web )?"
    r"(?:query|question|rewritten[\w ]*|answer|output)(?:\s*\d{1,3})?\**\s*[:：]\**\s*",
    re.IGNORECASE,
)
_ANNOUNCED = re.compile(
    r"^\s*(?:(?:sure|certainly|of course|okay|ok)\b[!,.]*\s*)?here(?:['’]s| is| are)\b"
    r"(?=[^:：?]*\b(?:quer(?:y|ies)|questions?|search(?:es)?|answers?|outputs?|versions?|wordings?|one|"
    r"paraphras\w*|re(?:writ|phras|word|formulat)\w*)\b)[^:：?]{0,60}[:：]\**\s+(?=\S)",
    re.IGNORECASE,
)
_PREAMBLE = re.compile(
    r"\s*(?:```\s*\w*|#{1,6}\s.*|.*[:：]\**|"
    r"\**(?:query|question|answer|output|sure|certainly|of course|okay|ok)\b[!.\s*]*)\s*",
    re.IGNORECASE,
)
"""A line that says nothing itself: a fence, a heading, what announces the lines after it."""
_NUMBER = re.compile(r"^\s*\d{1,3}\.\s+")
_BULLET = re.compile(r"^\s*(?:[-*•]|\d{1,3}[.)]|\[\d{1,3}\])\s+")
_EMPHASIS = re.compile(r"(\*{1,3}|_{1,3}|`{1,3})(?=\S)((?:(?!\1).)+)(?<=\S)\1")
_JSON_START = re.compile(r'(?:```(?:json)?)?\s*[\[{]\s*["{\[]')
_ITEM = re.compile(r'"(?:[^"\\]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"(?=\s*[,\]])')
_QUOTES = "\"'“”‘’«»`"
_QUOTE = re.compile(rf"(?<!\w)[{_QUOTES}]|[{_QUOTES}](?!\w)")
"""Not an apostrophe."""
_COMMA = re.compile(r",(\s*[}\]])")
_VERDICT = re.compile(r"\b(yes|no)\b(?=\s*(?:[.,;:!?)\]\"'*]|$))", re.IGNORECASE | re.MULTILINE)
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
    """The first line that says something, without a label, a bullet or quotes around it.

    A number before a line that is no list ("1. FC Köln") is its own.
    """
    rows = whole(text).splitlines()
    listed = sum(bool(_NUMBER.match(row)) for row in rows) > 1
    for row in rows:
        bare = _ANNOUNCED.sub("", row)
        cleaned = _cleaned(_LABEL.sub("", bare), listed)
        if cleaned and not _PREAMBLE.fullmatch(bare):
            return cleaned
    raise Unreadable("empty")


def lines(text: str) -> list[str]:
    """Every line that says something: a JSON list of texts, alone or in an object, or a list with bullets or not."""
    try:
        rows = first_fit(text, _texts)
    except Unreadable:
        rows = _whole_items(whole(text))
    if not rows and not _JSON_START.match(whole(text)):
        every = whole(text).splitlines()
        rows = [row for row in every if _BULLET.match(row)] or [row for row in every if not _PREAMBLE.fullmatch(row)]
    found = [cleaned for row in rows if (cleaned := _cleaned(row))]
    if not found:
        raise Unreadable("no list")
    return list(dict.fromkeys(found))


def _texts(value: Any) -> list[str]:
    """The texts of a list; of an object in it, its only text or that called ``task``. Raises Unreadable for none."""
    rows = []
    for one in as_list(value):
        inside = [part for part in one.values() if isinstance(part, str)] if isinstance(one, dict) else []
        text = one.get("task", inside[0] if len(inside) == 1 else None) if isinstance(one, dict) else one
        rows += [sound(text)] if isinstance(text, str) else []
    if not rows:
        raise Unreadable("no list")
    return rows


def _whole_items(body: str) -> list[str]:
    """The texts of a JSON list that is cut off, as far as they are whole; none of what does not begin as JSON."""
    if not _JSON_START.match(body):
        return []
    inside = body[body.find("[") + 1 :]
    if inside.lstrip().startswith("{"):
        return _texts([value for value in json_values(body) if isinstance(value, dict)])
    return [sound(json.loads(item, strict=False)) for item in _ITEM.findall(inside)]


def yes_no(text: str) -> bool:
    """The first yes or no that stands alone ("no doubt" does not), or the first at all."""
    found = _VERDICT.search(whole(text)) or _YES_NO.search(whole(text))
    if found is None:
        raise Unreadable("neither yes nor no")
    return found[1].lower() == "yes"


def record(*keys: str) -> Callable[[str], dict[str, str]]:
    """A reader of a JSON object whose ``keys`` are texts; others are dropped."""

    def fields(value: Any) -> dict[str, str]:
        if not isinstance(value, dict):
            raise Unreadable("no JSON object")
        found: dict[str, str] = {}
        for key in keys:
            given = value.get(key)
            if not isinstance(given, str) or not given.strip():
                raise Unreadable(f"no {key}")
            found[key] = sound(given.strip())
        return found

    return lambda text: first_fit(text, fields)


def as_list(value: Any) -> list[Any]:
    """A JSON array, that of an object with nothing else, or an object with numbers for names. Raises Unreadable."""
    only = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else value
    if isinstance(only, dict) and only and all(re.search(r"\d", str(name)) for name in only):
        return list(only.values())
    if not isinstance(only, list):
        raise Unreadable("no list")
    return only


def first_fit(text: str, fit: Callable[[Any], T]) -> T:
    """What ``fit`` makes of the first JSON object or array that it can read. Raises its verdict on the first of all."""
    verdict: Unreadable | None = None
    for value in json_values(text):
        try:
            return fit(value)
        except Unreadable as reason:
            verdict = verdict or reason
    raise verdict or Unreadable("no JSON")


def json_values(text: str) -> Iterator[Any]:
    """Every JSON object or array in ``text`` that can be read, in order, also those inside of others.

    Fences and words around it do not matter, nor do line breaks in strings, commas before brackets or Python's quotes.
    """
    body = whole(text)
    for start in _starts(body):
        end = _end(body, start)
        value = None if end is None else _json(body[start:end])
        if value is not None:
            yield value


def _json(text: str) -> Any:
    for attempt in _repairs(text):
        try:
            return json.loads(attempt, strict=False)
        except (ValueError, RecursionError):
            continue
    return _literal(text)


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


def _cleaned(row: str, listed: bool = True) -> str:
    """Without a bullet, emphasis or quotes around it; a number is one of a list, or stands before quotes."""
    number = _NUMBER.match(row)
    if number is None:
        return _bare(_BULLET.sub("", row).strip())
    rest = row[number.end() :].strip()
    return _bare(rest) if listed or _bare(rest) != rest else row.strip()


def _bare(text: str) -> str:
    if emphasised := _EMPHASIS.fullmatch(text):
        text = emphasised[2]
    return _unquoted(text)


def _unquoted(text: str) -> str:
    """Without quotes around all of it; where the first one ends earlier, they belong to what is said."""
    if len(text) < 2 or text[0] not in _QUOTES or text[-1] not in _QUOTES:
        return text
    inside = text[1:-1]
    next_one = _QUOTE.search(inside)
    ends = next_one is not None and next_one.start() > 0 and not inside[next_one.start() - 1].isspace()
    return text if ends else inside.strip()
