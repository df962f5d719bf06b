"""The tag protocol: ``<search> query </search>``, answers between ``<information>`` tags.

Another tool is called by its name, ``<open> Peer Gynt </open>``: the text is the first parameter of its schema, or a
JSON object with several. A turn has one query, since its closing tag ends the turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from envs.grammar import STOP_STRINGS, action_end, parse_turn
from envs.prompts import Preset
from envs.protocols.calls import Schema, json_object, to_action
from sleuth.reserved import TAGS
from sleuth.types import Action, Answer, Call, Invalid, Search

_QUESTION = "Question: {question}"


class Tags:
    """``schemas``: those of the tools that may be called, search among them."""

    tool_messages = False

    def __init__(self, schemas: Sequence[Schema]) -> None:
        self.schemas = tuple(schemas)
        self._others = {str(schema["name"]): schema for schema in schemas if schema["name"] != "search"}
        self.tags = (*TAGS, *self._others)
        self._names = ("search", "answer", *self._others)
        self.stop_strings: tuple[str, ...] = (*STOP_STRINGS, *(f"</{name}>" for name in self._others))

    def wording(self, preset: Preset) -> Preset:
        if not self._others:
            return preset
        told = "".join(map(_described, self._others.values()))
        told = f"These tools may be called too; what they return comes back like passages:\n{told}\n"
        before, question, after = preset.search.rpartition(_QUESTION)
        return replace(preset, search=f"{before}{told}{question}{after}")

    def parse(self, text: str, thinking: bool) -> Action:
        action = parse_turn(text, thinking, self._names)
        if not isinstance(action, Call):
            return action
        (content,) = action.arguments.values()
        return self._call(action.tool, content)

    def ended(self, text: str, thinking: bool) -> bool:
        return action_end(text, thinking, self._names) is not None

    def write(self, think: str, action: Action) -> str:
        return f"<think> {think} </think>\n{_written(action)}"

    def _call(self, name: str, content: str) -> Action:
        parameters = self._others[name]["parameters"].get("properties", {})
        arguments = json_object(content)
        if arguments is None:
            if not parameters:
                return Invalid(f"between <{name}> and </{name}> stands a JSON object")
            arguments = {next(iter(parameters)): content}
        return to_action([(name, arguments)], list(self._others.values()))


def _described(schema: Schema) -> str:
    first = next(iter(schema["parameters"].get("properties", {})), "")
    form = f"<{schema['name']}> {first} </{schema['name']}>"
    more = json.dumps(schema["parameters"].get("properties", {}), ensure_ascii=False)
    return f"- {form}, or a JSON object of arguments between these tags. {schema['description']} Arguments: {more}\n"


def _written(action: Action) -> str:
    match action:
        case Search(queries=(query,)):
            return f"<search> {query} </search>"
        case Call(tool=tool, arguments=arguments):
            return f"<{tool}> {json.dumps(arguments, ensure_ascii=False)} </{tool}>"
        case Answer(text=text):
            return f"<answer> {text} </answer>"
    raise ValueError(f"the tag protocol has no form for {action}")
