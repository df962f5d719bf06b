"""Tools that a policy may call: their schemas, the built-in ``open``, and those named by dotted path.

The environment only shows and parses calls; the rollout driver makes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from envs.config import EnvironmentSettings, ToolSettings
from sleuth.errors import ConfigError, ToolError, first_line
from sleuth.evidence import normalise_title
from sleuth.hits import first_seen
from sleuth.plugins import make_object
from sleuth.protocols import Documents, Tool
from sleuth.types import Hit, Passage, Search, Turn

Schema = Mapping[str, Any]

SEARCH: Schema = {
    "name": "search",
    "description": "Searches for passages. One query asks for one fact; several calls may stand in one turn.",
    "parameters": {
        "type": "object",
        "properties": {"query": {"type": "string", "description": "What to look for, in a few words."}},
        "required": ["query"],
    },
}
OPEN: Schema = {
    "name": "open",
    "description": "Opens the whole document that a passage is from, page by page.",
    "parameters": {
        "type": "object",
        "properties": {
            "document": {
                "type": "string",
                "description": "Number of a passage in the last results, or title or id of any passage found so far.",
            },
            "page": {"type": "integer", "description": "Which page, from 1."},
        },
        "required": ["document"],
    },
}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TAKEN = ("think", "search", "answer", "information", "open", "tool_call", "tool_response", "tools")
WORDS_PER_TOKEN = 0.6
"""A page of a document has this many words for each token of an observation, so that prose is not cut."""


class OpenDocument:
    """The document of a passage that the episode has found, ``words`` a page."""

    def __init__(self, documents: Documents | None, words: int) -> None:
        self._documents = documents
        self._words = words

    @property
    def schema(self) -> Schema:
        return OPEN

    def call(self, arguments: Mapping[str, Any], turns: Sequence[Turn]) -> str:
        """One page, under a line with title and page. Raises ToolError if there is no such passage or page."""
        wanted, page = _asked(arguments)
        passage = _find(wanted, turns)
        whole = self._documents.document(passage.id) if self._documents else []
        if not whole:
            raise ToolError("this document cannot be opened")
        pages = _pages(whole, self._words)
        if not 1 <= page <= len(pages):
            raise ToolError(f"the document has {len(pages)} page{'s' * (len(pages) > 1)}")
        title = passage.title or passage.id
        return f"{title} (page {page} of {len(pages)})\n{pages[page - 1]}"


def schemas(settings: EnvironmentSettings) -> tuple[Schema, ...]:
    """The schemas of the tools that are switched on, in order. Raises ConfigError for one that is not usable."""
    return tuple(SEARCH if one.kind == "search" else _make(one, settings, None).schema for one in settings.tools)


def make_tools(settings: EnvironmentSettings, documents: Documents | None) -> dict[str, Tool]:
    """The tools besides search, by name; ``documents`` are the retriever's. Raises ConfigError."""
    made = [_make(one, settings, documents) for one in settings.tools if one.kind != "search"]
    names = [str(tool.schema["name"]) for tool in made]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two tools are called '{twice}'", "give one of them another name in its schema")
    return dict(zip(names, made, strict=True))


def time_limits(settings: EnvironmentSettings, tools: Mapping[str, Tool]) -> dict[str, float]:
    """Seconds that a call of each of ``make_tools`` may take."""
    others = [one for one in settings.tools if one.kind != "search"]
    return {name: one.timeout_s for name, one in zip(tools, others, strict=True)}


def _make(one: ToolSettings, settings: EnvironmentSettings, documents: Documents | None) -> Tool:
    if one.kind == "open":
        return OpenDocument(documents, int(one.options.get("words") or settings.observation_tokens * WORDS_PER_TOKEN))
    tool: Tool = make_object(one.kind, "tool", options=one.options, methods=["call"])
    wrong = _fault(getattr(tool, "schema", None))
    if wrong:
        raise ConfigError(f"tool {one.kind} {wrong}", "its schema is like those in docs/examples/arithmetic.py")
    return tool


def _fault(schema: Any) -> str | None:
    """What is wrong with the schema of a tool; None if nothing is."""
    if not isinstance(schema, Mapping) or not isinstance(schema.get("parameters"), Mapping):
        return 'has no schema {"name", "description", "parameters"}'
    name, parameters = schema.get("name"), schema["parameters"]
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _TAKEN:
        return f"cannot be called {name!r}: a name is a new lower-case word, such as lookup"
    if not isinstance(schema.get("description"), str):
        return "has no description in its schema"
    properties, required = parameters.get("properties", {}), parameters.get("required", [])
    if not isinstance(properties, Mapping) or not all(isinstance(key, str) for key in properties):
        return "has properties that are no mapping from names"
    if not isinstance(required, list | tuple) or any(key not in properties for key in required):
        return "requires an argument that is not among its properties"
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError) as error:
        return f"has a schema that is not JSON: {first_line(error)}"
    slot = next((slot for slot in ("{question}", "{passages}") if slot in text), None)
    return f"has {slot} in its schema, where the prompt would fill it in" if slot else None


def _asked(arguments: Mapping[str, Any]) -> tuple[str, int]:
    wanted, page = arguments.get("document"), arguments.get("page", 1)
    if isinstance(wanted, bool) or not isinstance(wanted, str | int) or not str(wanted).strip():
        raise ToolError("say which document: a number of the last results, a title or an id")
    if isinstance(page, str) and page.strip().isdecimal():
        page = int(page)
    if isinstance(page, bool) or not isinstance(page, int):
        raise ToolError("the page must be a whole number")
    return str(wanted).strip(), page


def _find(wanted: str, turns: Sequence[Turn]) -> Passage:
    """The passage with this number in the last results, or with this id or title, the newest first."""
    newest = next((turn.hits for turn in reversed(turns) if isinstance(turn.action, Search)), ())
    (last,) = first_seen([newest])  # as they were numbered
    number = wanted.removeprefix("[").removesuffix("]")
    if number.isdecimal() and 1 <= int(number) <= len(last):
        return last[int(number) - 1].passage
    found: list[Hit] = [hit for turn in reversed(turns) for hit in turn.hits]
    for hit in found:
        if hit.passage.id == wanted:
            return hit.passage
    title = normalise_title(wanted)
    for hit in found:
        if normalise_title(hit.passage.title) == title:
            return hit.passage
    raise ToolError("no passage found so far has this number, title or id")


def _pages(whole: Sequence[Passage], words: int) -> list[str]:
    """The texts of a document in pages of at most ``words`` words; a paragraph is split only if it is longer."""
    pages: list[list[str]] = [[]]
    used = 0
    for text in (passage.text.split() for passage in whole):
        if used and used + len(text) > words:
            pages.append([])
            used = 0
        for start in range(0, len(text), words):
            if start:
                pages.append([])
            part = text[start : start + words]
            pages[-1].append(" ".join(part))
            used = len(part) if start else used + len(part)
    return ["\n".join(page) for page in pages]
