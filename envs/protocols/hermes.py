"""The Hermes form of tool calls, as Qwen and most servers write it.

A turn is a thought, then ``<tool_call>{"name": "search", "arguments": {"query": "..."}}</tool_call>``, once or several
times, or ``<answer>text</answer>``: a final answer needs a form of its own, since thoughts and answers are both plain
words of the assistant, and these tags are what Search-R1 and its successors with tool calls train on. Only text that
the policy sampled is ever parsed.

Inside ``<tool_call>``, Qwen3.5's form is read as well, for templates that ask for it:
``<function=search><parameter=query>...</parameter></function>``. Demonstrations have the JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from envs.prompts import ANSWER_FORM, MINIMAL, PRESETS, SHORT, SLEUTH, Preset
from envs.protocols.calls import Schema, json_object, to_action
from sleuth.errors import ConfigError
from sleuth.reserved import CALL_TAGS
from sleuth.types import Action, Answer, Call, Invalid, Search

STOP_STRINGS = ("</answer>", "<tool_response>")
"""A turn of calls has no stop string: another call may follow, so only the end of the message ends it. What a policy
writes after ``<tool_response>`` it has made up."""

_SEARCHED = (
    "Find the answer to the question at the end with the help of the tools.\n"
    "In each of your turns, first think between <think> and </think>: what is known by now, what is missing. "
    "Then do exactly one thing:\n"
    "- call a tool. One query asks for one fact; a question that joins several facts needs several searches, of which "
    "a turn may make more than one.\n"
    f"- answer, as soon as the passages settle it. {ANSWER_FORM}\n\n"
    "Question: {question}\n"
)
_WORDINGS = {
    "sleuth": replace(
        SLEUTH,
        search=_SEARCHED,
        invalid="That turn was not valid: {reason}. Call a tool, or write the final answer between <answer> and "
        "</answer>.",
        searches_used="No searches are left. Write the final answer between <answer> and </answer> now.",
        last_turn="\n\nThis is the last turn: write the final answer between <answer> and </answer>.",
        chat=True,
    ),
    "minimal": replace(MINIMAL, chat=True),
    "short": replace(
        SHORT,
        search="Think, then call a tool or write <answer> a few words </answer>.\nQuestion: {question}\n",
        invalid="Not valid: {reason}. Call a tool, or <answer>.",
        searches_used="No searches are left: <answer>.",
        chat=True,
    ),
}
_THOUGHT = re.compile(r"</?think>")
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_FUNCTION = re.compile(r"\s*<function=([^<>]+)>(.*?)</function>\s*", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^<>]+)>(.*?)</parameter>", re.DOTALL)
_TAG = re.compile(r"</?(?:think|tool_call|tool_response|answer)>")


class Hermes:
    """``schemas``: those of the tools that may be called."""

    stop_strings = STOP_STRINGS
    tags = ("think", "answer", *CALL_TAGS)
    tool_messages = True

    def __init__(self, schemas: Sequence[Schema]) -> None:
        self.schemas = tuple(schemas)

    def wording(self, preset: Preset) -> Preset:
        name = next((name for name, known in PRESETS.items() if known == preset), "")
        if name not in _WORDINGS:
            said = f"the preset {name or 'given'} is written for the protocol tags"
            raise ConfigError(said, "set environment.preset: sleuth, or environment.protocol: tags")
        return _WORDINGS[name]

    def parse(self, text: str, thinking: bool) -> Action:
        return parse(text, thinking, self.schemas)

    def ended(self, text: str, thinking: bool) -> bool:
        said, _ = outside_thoughts(text, thinking)
        return any(string in said for string in STOP_STRINGS)

    def write(self, think: str, action: Action) -> str:
        return f"<think> {think} </think>\n{_written(action)}"


def parse(text: str, thinking: bool, tools: Sequence[Schema]) -> Action:
    """The action in ONE new turn. What stands in a thought is a mention; ``thinking``: one is open at the start."""
    said, open_at_end = outside_thoughts(text, thinking)
    if "<tool_response>" in said or "</tool_response>" in said:
        return Invalid("only a tool writes <tool_response>")
    calls, answer = _CALL.findall(said), _ANSWER.search(said)
    if calls and answer:
        return Invalid("a turn calls tools or answers, not both")
    if answer:
        return _answer(answer[1])
    if "<tool_call>" in _CALL.sub("", said):
        return Invalid("<tool_call> was opened and not closed")
    if not calls:
        if open_at_end:
            return Invalid("the turn ended inside a <think> that was not closed")
        return Invalid("<answer> was opened and not closed" if "<answer>" in said else "the turn called no tool")
    read = [_call(content) for content in calls]
    wrong = next((one for one in read if isinstance(one, Invalid)), None)
    return wrong or to_action([one for one in read if not isinstance(one, Invalid)], tools)


def outside_thoughts(text: str, thinking: bool) -> tuple[str, bool]:
    """``text`` without its thoughts, and whether the last of them is still open."""
    kept: list[str] = []
    position = 0
    for tag in _THOUGHT.finditer(text):
        if tag[0] == "<think>" and not thinking:
            kept.append(text[position : tag.start()])
            thinking = True
        elif tag[0] == "</think>" and thinking:
            position, thinking = tag.end(), False
    return "".join([*kept, "" if thinking else text[position:]]), thinking


def _answer(content: str) -> Action:
    if _TAG.search(content):
        return Invalid("another tag stands between <answer> and </answer>")
    return Answer(content.strip()) if content.strip() else Invalid("the answer is empty")


def _call(content: str) -> tuple[str, Mapping[str, Any]] | Invalid:
    """Name and arguments. The arguments may also be JSON in a string, as in OpenAI's calls."""
    function = _FUNCTION.fullmatch(content)
    if function:
        return function[1].strip(), {name.strip(): value.strip() for name, value in _PARAMETER.findall(function[2])}
    call = json_object(content)
    if call is None:
        return Invalid("a <tool_call> is a JSON object with name and arguments")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json_object(arguments)
    if not isinstance(call.get("name"), str) or not isinstance(arguments, dict):
        return Invalid("a <tool_call> is a JSON object with name and arguments")
    return call["name"], arguments


def _written(action: Action) -> str:
    match action:
        case Search(queries=queries):
            return "\n".join(_call_of("search", {"query": query}) for query in queries)
        case Call(tool=tool, arguments=arguments):
            return _call_of(tool, arguments)
        case Answer(text=text):
            return f"<answer> {text} </answer>"
    raise ValueError(f"there is nothing to write for {action}")


def _call_of(name: str, arguments: Mapping[str, Any]) -> str:
    call = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    return f"<tool_call>{call}</tool_call>"
