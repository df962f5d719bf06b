"""Topics as TREC publishes them: the SGML of ad hoc tracks, the XML of later ones, plain or ``.gz``.

SGML tags are not closed and repeat their names as labels: ``<num> Number: 301``, ``<desc> Description:``. XML has
``<topic number="151">`` around ``<query>``, ``<description>`` and the like.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from sleuth.errors import ConfigError, DataError, did_you_mean
from sleuth.files import OTHER_ENCODING, RECODE, open_data
from sleuth.types import Question

FIELDS: Mapping[str, tuple[str, ...]] = {
    "title": ("title", "query"),
    "description": ("desc", "description", "question"),
    "narrative": ("narr", "narrative"),
}
"""The tags that tracks use for each part of a topic."""

_BLOCK = re.compile(r"<top>(.*?)(?=</top>|<top>|\Z)", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<(/?)([a-z]+)\b[^>]*>", re.IGNORECASE)
_LABEL = re.compile(r"^\s*(?:number|topic|description|narrative)\s*:", re.IGNORECASE)


def read_topics(path: str | Path, field: str = "title") -> list[Question]:
    """The topics of a file as queries. ``field``: a key of `FIELDS`, or several joined by ``+``.

    Raises ConfigError for an unknown field, DataError for a file without topics or a topic without that field.
    """
    wanted = field.split("+")
    for name in wanted:
        if name not in FIELDS:
            raise ConfigError(f"topics have no field '{name}'", did_you_mean(name, FIELDS))
    topics: dict[str, Question] = {}
    for identifier, parts in _parse(_text(Path(path))):
        found = [next((parts[tag] for tag in FIELDS[name] if parts.get(tag)), "") for name in wanted]
        if not identifier:
            raise DataError(f"{path}: topic {len(topics) + 1} has no number")
        if not all(found):
            missing = wanted[found.index("")]
            raise DataError(f"{path}: topic {identifier} has no {missing}", f"it has {', '.join(parts) or 'nothing'}")
        if identifier in topics:
            raise DataError(f"{path}: duplicate topic {identifier}")
        topics[identifier] = Question(identifier, " ".join(found), ())
    if not topics:
        raise DataError(f"{path} has no topics", "topics stand in <top> or <topic>; other queries: --queries FILE")
    return list(topics.values())


def _text(path: Path) -> str:
    with open_data(path, markup=True) as file:
        try:
            return file.read().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise DataError(f"{path}: {OTHER_ENCODING}", RECODE) from None


def _parse(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(number, text by tag) of every topic."""
    try:
        whole = ElementTree.fromstring(text)
    except ElementTree.ParseError:  # several roots, unclosed tags, bare &: SGML
        for block in _BLOCK.finditer(text):
            yield _from_sgml(block.group(1))
        return
    for topic in whole.iter():
        if topic.tag in ("topic", "top"):
            parts = {part.tag: _clean(part.text or "") for part in reversed(topic)}  # the first of a name counts
            yield (topic.get("number") or topic.get("id") or _number(parts.pop("num", ""))).strip(), parts


def _from_sgml(block: str) -> tuple[str, dict[str, str]]:
    parts: dict[str, str] = {}
    tags = list(_TAG.finditer(block))
    for tag, end in zip(tags, [*(tag.start() for tag in tags[1:]), len(block)], strict=True):
        if not tag.group(1):
            parts.setdefault(tag.group(2).lower(), _clean(html.unescape(block[tag.end() : end])))
    return _number(parts.pop("num", "")), parts


def _clean(text: str) -> str:
    return " ".join(_LABEL.sub("", text).split())


def _number(text: str) -> str:
    """``051`` is topic 51 in the judgements."""
    return str(int(text)) if text.isascii() and text.isdigit() else text
