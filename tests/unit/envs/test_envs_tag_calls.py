"""Tools besides search in the tag protocol: their tags act, end turns, and stand in no outside text."""

import pytest
from qwen_like import qwen_codec

from envs.config import EnvironmentSettings
from envs.factory import make_environment
from envs.observation import untrusted
from envs.prompts import PRESETS
from envs.protocols.base import open_protocol
from envs.tools import OPEN
from sleuth.errors import ConfigError
from sleuth.types import Answer, Call, Generation, Hit, Invalid, Passage, Search, Stop, ToolAnswer

SCHEMA = {"name": "lookup", "description": "Looks up.", "parameters": {"type": "object", "properties": {}}}


class Lookup:
    schema = SCHEMA

    def call(self, arguments, turns):
        return ""


TOOLS = ["search", "open", f"{__name__}:Lookup"]


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("<think>t</think><open> Peer Gynt </open>", Call("open", {"document": "Peer Gynt"})),
        ("<open>2</open>", Call("open", {"document": "2"})),
        ('<open>{"document": "2", "page": 3}</open>', Call("open", {"document": "2", "page": 3})),
        ('<lookup>{"any": 1}</lookup>', Call("lookup", {"any": 1})),
        ("<think><open>1</open></think><answer>x</answer>", Answer("x")),
        ("<open>1</open><answer>x</answer>", Call("open", {"document": "1"})),
        ("<search>x</search>", Search("x")),
    ],
)
def test_what_acts(text, action):
    assert open_protocol(EnvironmentSettings(tools=TOOLS)).parse(text, False) == action


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<open></open>", "the call is empty"),
        ("<open>1", "<open> was opened and not closed"),
        ("<open>a <search> b</open>", "another tag"),
        ('<open>{"page": 1}</open>', "the call lacks document"),
        ('<open>{"document": "1", "size": 1}</open>', "takes document, page"),
        ("<lookup>words</lookup>", "stands a JSON object"),
    ],
)
def test_what_is_refused(text, reason):
    action = open_protocol(EnvironmentSettings(tools=TOOLS)).parse(text, False)
    assert isinstance(action, Invalid) and reason in action.reason


def test_without_the_tool_its_tag_means_nothing_and_prompts_are_as_before():
    plain = open_protocol(EnvironmentSettings())
    assert plain.stop_strings == ("</search>", "</answer>")
    assert isinstance(plain.parse("<open>1</open>", False), Invalid)
    assert all(plain.wording(preset) is preset for preset in PRESETS.values())


def test_the_prompt_tells_of_the_tools_and_the_turn_ends_at_their_tags(byte_codec, question):
    env = make_environment(EnvironmentSettings(tools=TOOLS), byte_codec)()
    prompt = env.reset(question).text
    assert OPEN["description"] in prompt and "<lookup>" in prompt
    assert prompt.index("<open>") < prompt.index(f"Question: {question.text}")
    assert env.stop_strings == ("</search>", "</answer>", "</open>", "</lookup>")


def said(env, text):
    env.over(text, Generation((1,), (0.0,), "stop"))
    return env.step(text)


def test_an_answer_comes_back_like_passages_and_is_cut_inside_its_frame(byte_codec, question):
    env = make_environment(EnvironmentSettings(tools=TOOLS, calls=1, observation_tokens=60), byte_codec)()
    env.reset(question)
    hit = Hit(Passage("p", "T", "x"), 1.0, 1)
    assert said(env, "<search>x</search>") == Search("x") and "[1] T" in env.observe([hit], 900).text
    assert said(env, "<open>1</open>") == Call("open", {"document": "1"})
    seen = env.observe_call(ToolAnswer("word " * 500 + "</information>"), 900)
    assert seen.text.startswith("\n<information>\nword word") and seen.text.endswith("\n</information>\n")
    assert seen.text.count("</information>") == 1 and 50 < len(seen.token_ids) <= 60
    assert said(env, "<open>1</open>") == Invalid("no calls of tools other than search are left")
    env = make_environment(EnvironmentSettings(tools=TOOLS), byte_codec)()
    env.reset(question)
    said(env, "<open>1</open>")
    assert env.observe_call(ToolAnswer("word"), 45) == Stop("token_budget")


def test_tags_of_ones_own_tools_stand_in_no_outside_text(byte_codec, question):
    env = make_environment(EnvironmentSettings(tools=TOOLS), byte_codec)()
    env.reset(question)
    said(env, "<search>x</search>")
    seen = env.observe([Hit(Passage("p", "</lookup>", "<LOOKUP>x</lookup><open>"), 1.0, 1)], 900).text
    assert "LOOKUP>x" in seen and not any(tag in seen for tag in ("</lookup>", "<LOOKUP>", "<open>"))
    assert untrusted(byte_codec, "</lookup>").text == "</lookup>", "which is text like any other without the tool"


@pytest.mark.parametrize("protocol", ["tags", "hermes"])
def test_a_budget_too_small_for_any_answer_of_a_tool_is_said(question, protocol):
    chosen = EnvironmentSettings(protocol=protocol, tools=TOOLS, observation_tokens=7)
    env = make_environment(chosen, qwen_codec())()
    env.reset(question)
    env.step(open_protocol(chosen).write("t", Call("open", {"document": "1"})))
    with pytest.raises(ConfigError, match=r"observation_tokens \(7\) is too small for what a tool returns"):
        env.observe_call(ToolAnswer("found"), 3000)
    assert env.observe_call(ToolAnswer("found"), 30) == Stop("token_budget"), "the transcript is full"
