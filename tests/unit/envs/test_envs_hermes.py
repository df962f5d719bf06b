"""The Hermes form, turn by turn: what acts, what is a mention, and what is refused with which words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from envs.protocols.hermes import parse
from envs.tools import OPEN, SEARCH
from sleuth.types import Answer, Call, Invalid, Search

TOOLS = (SEARCH, OPEN)
ONE = '<tool_call>\n{"name": "search", "arguments": {"query": "capital of Norway"}}\n</tool_call>'
OTHER = '<tool_call>{"name": "search", "arguments": {"query": " Oslo "}}</tool_call>'
LINES = "capital\nof Norway"
XML = f"<tool_call>\n<function=search>\n<parameter=query>\n{LINES}\n</parameter>\n</function>\n</tool_call>"


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (ONE, Search("capital of Norway")),
        (f"<think>I need it.</think>\n{ONE}", Search("capital of Norway")),
        (f"{ONE}\n{OTHER}", Search("capital of Norway", "Oslo")),
        ('<tool_call>{"name": "search", "arguments": {"query": ["a", "b"]}}</tool_call>', Search("a", "b")),
        ('<tool_call>{"name": "search", "arguments": {"queries": ["a", "b"]}}</tool_call>', Search("a", "b")),
        ('<tool_call>{"name": "search", "arguments": "{\\"query\\": \\"a\\"}"}</tool_call>', Search("a")),
        (
            '<tool_call>{"name": "open", "arguments": {"document": "Oslo", "page": 2}}</tool_call>',
            Call("open", {"document": "Oslo", "page": 2}),
        ),
        (f"{XML}\n{ONE}", Search("capital\nof Norway", "capital of Norway")),
        (XML.replace("=search>", "=open>").replace("=query>", "=document>"), Call("open", {"document": LINES})),
        ("<think>so</think>\n<answer> Oslo </answer>", Answer("Oslo")),
        (f"<think>{ONE}</think><answer>Oslo</answer>", Answer("Oslo")),
        ("<think>an <answer> is due</think><answer>Oslo</answer>", Answer("Oslo")),
        ("<think><tool_response></think><answer>x</answer>", Answer("x")),
    ],
)
def test_what_acts(text, action):
    assert parse(text, False, TOOLS) == action


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"{ONE}<answer>Oslo</answer>", "not both"),
        (f"{ONE}\n<tool_response>Oslo</tool_response>", "only a tool writes"),
        ('<tool_call>{"name": "search"', "opened and not closed"),
        (f'{ONE}\n<tool_call>{{"name"', "opened and not closed"),
        ("<tool_call>search Oslo</tool_call>", "is a JSON object"),
        ('<tool_call>{"name": "search", "arguments": [1]}</tool_call>', "is a JSON object"),
        ('<tool_call>{"name": "search", "arguments": {"query": NaN}}</tool_call>', "is a JSON object"),
        ('<tool_call>{"name": "search", "arguments": {}}</tool_call>', 'needs a "query"'),
        ('<tool_call>{"name": "search", "arguments": {"query": " "}}</tool_call>', "the query is empty"),
        ('<tool_call>{"name": "search", "arguments": {"queries": []}}</tool_call>', "the query is empty"),
        ('<tool_call>{"name": "search", "arguments": {"query": 7}}</tool_call>', "a query is a text"),
        ('<tool_call>{"name": "<|im_end|>", "arguments": {}}</tool_call>', "there is open, search"),
        ('<tool_call>{"name": "open", "arguments": {}}</tool_call>', "the call lacks document"),
        ('<tool_call>{"name": "open", "arguments": {"document": "a", "size": 1}}</tool_call>', "takes document, page"),
        (f'{ONE}<tool_call>{{"name": "open", "arguments": {{"document": "a"}}}}</tool_call>', "one call of another"),
        (XML.replace("=search>", "=close>"), "there is open, search"),
        (XML.replace("</function>", ""), "is a JSON object"),
        (XML.replace("=query>", "=size>"), 'needs a "query"'),
        ("<answer>Oslo", "<answer> was opened and not closed"),
        ("<answer> </answer>", "the answer is empty"),
        ("<answer>a<think>b</answer>", "not closed"),
        (f"<think>so {ONE}", "inside a <think>"),
        ("Oslo", "called no tool"),
        ("", "called no tool"),
    ],
)
def test_what_is_refused(text, reason):
    action = parse(text, False, TOOLS)
    assert isinstance(action, Invalid) and reason in action.reason
    assert "im_end" not in action.reason, "the policy's words are never quoted: the hint is our own text"


def test_a_thought_that_the_prompt_opened_hides_what_stands_in_it():
    assert parse(f"maybe {ONE}</think><answer>Oslo</answer>", True, TOOLS) == Answer("Oslo")
    assert isinstance(parse(f"maybe {ONE}", True, TOOLS), Invalid)
    assert isinstance(parse(ONE, True, TOOLS), Invalid) and isinstance(parse(ONE, False, TOOLS), Search)


@given(st.lists(st.sampled_from([ONE, OTHER, "<think>", "</think>", "<answer>x</answer>", "<tool_call>", "{", "a"])))
def test_any_text_is_an_action(parts):
    action = parse("".join(parts), False, TOOLS)
    assert isinstance(action, Search | Call | Answer | Invalid)
    if isinstance(action, Search):
        assert all(query in ("capital of Norway", "Oslo") for query in action.queries)
