"""From what a policy wrote to a typed action: tools, arguments and queries. Nothing here depends on a protocol.

Reasons never quote the policy: they are shown to it as our own words, in which special tokens may stand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sleuth.types import Call, Invalid, Search

Schema = Mapping[str, Any]


def to_action(calls: Sequence[tuple[str, Mapping[str, Any]]], tools: Sequence[Schema]) -> Search | Call | Invalid:
    """What (name, arguments) of one turn mean: searches, each with its queries, or a call of one other tool."""
    known = {str(schema["name"]) for schema in tools}
    if not known:
        return Invalid("there is no tool to call")
    if any(name not in known for name, _ in calls):
        return Invalid(f"there is no such tool; there is {', '.join(sorted(known))}")
    if all(name == "search" for name, _ in calls):
        queries = [_queries(arguments) for _, arguments in calls]
        wrong = next((one for one in queries if isinstance(one, Invalid)), None)
        return wrong or Search(*(query for one in queries if not isinstance(one, Invalid) for query in one))
    if len(calls) > 1:
        return Invalid("several searches may be made in a turn, or one call of another tool")
    name, arguments = calls[0]
    schema = next(schema for schema in tools if schema["name"] == name)
    wrong = _misfit(arguments, schema["parameters"])
    return wrong or Call(name, arguments)


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that ``text`` is; None if it is none (numbers such as NaN are not JSON)."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _queries(arguments: Mapping[str, Any]) -> list[str] | Invalid:
    """``query`` or ``queries``, each a text or a list of texts."""
    given = [arguments[name] for name in ("query", "queries") if name in arguments]
    if not given:
        return Invalid('search needs a "query"')
    listed = [query for value in given for query in (value if isinstance(value, list) else [value])]
    if not all(isinstance(query, str) for query in listed):
        return Invalid("a query is a text")
    queries = [query.strip() for query in listed]
    return queries if queries and all(queries) else Invalid("the query is empty")


def _misfit(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> Invalid | None:
    """What is missing or unknown; the tool itself judges the values."""
    properties = parameters.get("properties", {})
    missing = [str(name) for name in parameters.get("required", ()) if name not in arguments]
    if missing:
        return Invalid(f"the call lacks {', '.join(missing)}")
    if properties and any(name not in properties for name in arguments):
        return Invalid(f"the call has an argument that the tool does not take; it takes {', '.join(properties)}")
    return None
