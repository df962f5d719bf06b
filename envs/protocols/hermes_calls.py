"""Parses a turn in the Hermes form, as Qwen and most servers of tools write it.

A turn is a thought, then ``<tool_call>{"name": "search", "arguments": {"query": "..."}}</tool_call>``, once or several
times, or ``<answer>text</answer>``. Only text that the policy sampled is ever parsed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from envs.protocols.calls import Schema, json_object, to_action
from sleuth.types import Action, Answer, Invalid

STOP_STRINGS = ("</answer>", "<tool_response>")
"""A turn of calls has no stop string: another call may follow, so only the end of the message ends it. What a policy
writes after ``<tool_response>`` it has made up."""

_THOUGHT = re.compile(r"</?think>")
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_ANSWER = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
_TAG = re.compile(r"</?(?:think|tool_call|tool_response|answer)>")


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
    call = json_object(content)
    if call is None:
        return Invalid("a <tool_call> is a JSON object with name and arguments")
    arguments = call.get("arguments", {})
    if isinstance(arguments, str):
        arguments = json_object(arguments)
    if not isinstance(call.get("name"), str) or not isinstance(arguments, dict):
        return Invalid("a <tool_call> is a JSON object with name and arguments")
    return call["name"], arguments
