"""Whether a thought is open: from the prompt's end, through turns and observations, under TRL's chat templates."""

from __future__ import annotations

import datetime

import pytest
from tiny_tokenizers import byte_level, chat_template

from agent.codec import HFCodec
from envs.chat import ChatFrame, open_chat
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from envs.grammar import action_end, ends_thinking, parse_turn
from envs.prompts import PRESETS
from sleuth.errors import ConfigError
from sleuth.settings import load_settings, to_yaml, validate
from sleuth.types import Answer, Generation, Invalid, Question, Search

QUESTION = Question("q", "What is the capital of Norway?", ("Oslo",))
R1_AGAIN = "<｜Assistant｜><think>\n"
"""What DeepSeek-R1's distilled models are asked to go on from."""


@pytest.fixture(scope="module")
def codecs() -> dict[str, HFCodec]:
    chosen = {"deepseek_r1_distill": "deepseek", "llama3_2": "llama3", "llama3_1": "llama3"}
    names = ("deepseek_r1_distill", "qwen3", "qwen3_5_think", "qwen2_5", "llama3_1", "llama3_2")
    return {name: HFCodec(byte_level(chosen.get(name, "chatml"), name)) for name in names}


def environment(codec, **values):
    return make_environment(EnvironmentSettings(**values), codec)()


def heard(env, codec, text, finish):
    """The turn ``text`` with the tokens of it, as the driver passes it on; returns the action."""
    end = [codec.eos_token_id] if finish == "eos" else []
    ids = [*codec.encode(text, trusted=True), *end]
    assert env.over(text, Generation(tuple(ids), (0.0,) * len(ids), finish))
    return env.step(text)


@pytest.mark.parametrize(
    ("text", "thinking", "action"),
    [
        ("I could <search> x </search> but no.</think><answer>Oslo</answer>", True, Answer("Oslo")),
        ("<think>I could <search>x</search>.</think><search>y</search>", False, Search("y")),
        ("hm</think><think>or <answer>x</answer></think><search>y</search>", True, Search("y")),
        ("<think>again</think><search>y</search>", True, Search("y")),
        ("no end <search>x</search>", True, Invalid("the action stands inside a <think> that was not closed")),
        ("no end", True, Invalid("the thought was not closed")),
        ("a <search> b</think> prose", True, Invalid("the turn neither searched nor answered")),
        ("<think>a <search> b</think> prose", False, Invalid("the turn neither searched nor answered")),
        ("<think>a</think><search>b <think>c</think>", False, Invalid("<search> was opened and not closed")),
        ("<think>no end", False, Invalid("the thought was not closed")),
        ("<search>a</think>b</search>", True, Invalid("another tag stands between <search> and </search>")),
        ("<search>x</search> <think>", False, Search("x")),
    ],
)
def test_what_a_thought_mentions_is_not_done(text, thinking, action):
    assert parse_turn(text, thinking) == action


def test_where_a_turn_acts_and_where_a_thought_stays_open():
    assert action_end("a </search> b</think><search>q</search>", True).start() == 30
    assert action_end("a </search> b", True) is None
    assert [ends_thinking(text, True) for text in ("a", "a</think>", "a</think> <think>b", "<think> a")] == [
        *(True, False, True, True)
    ]
    assert [ends_thinking(text) for text in ("a", "<think>a", "a</think>")] == [False, True, False]


@pytest.mark.parametrize(
    ("name", "kwargs", "thinking"),
    [
        ("deepseek_r1_distill", {}, True),
        ("qwen3_5_think", {}, True),
        ("qwen3_5_think", {"enable_thinking": False}, False),
        ("qwen3", {}, False),
        ("qwen3", {"enable_thinking": False}, False),
        ("qwen2_5", {}, False),
    ],
)
def test_the_prompt_says_whether_a_thought_is_open(codecs, name, kwargs, thinking):
    env = environment(codecs[name], chat_template_kwargs=kwargs)
    prompt = env.reset(QUESTION)
    assert env.thinking is thinking
    assert prompt.text.rstrip().endswith("<think>") is thinking
    assert prompt.text.endswith("<think>\n\n</think>\n\n") is (kwargs == {"enable_thinking": False})


def test_a_stop_string_inside_a_thought_ends_no_turn(codecs):
    env = environment(codecs["deepseek_r1_distill"])
    env.reset(QUESTION)
    mention = "I could <search> x </search>"
    assert not env.over(mention, Generation((1,), (0.0,), "stop"))
    assert env.over(mention, Generation((1,), (0.0,), "length"))
    assert env.over(f"{mention}</think><search>y</search>", Generation((1,), (0.0,), "stop"))
    assert env.step(f"{mention}</think><search>y</search>") == Search("y")


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("qwen3", "<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
        ("qwen3_5_think", "<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n"),
        ("deepseek_r1_distill", "<｜end▁of▁sentence｜><｜User｜>", R1_AGAIN),
        (
            "llama3_1",
            "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n",
            "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
    ],
)
def test_the_frame_is_the_templates_own(codecs, name, before, after):
    preset = PRESETS["sleuth"]
    assert open_chat(preset.search, preset, EnvironmentSettings(), codecs[name]).frame == ChatFrame(before, after)


def test_a_hint_after_the_end_of_a_message_is_a_message(codecs, hits_of):
    codec = codecs["deepseek_r1_distill"]
    env = environment(codec)
    env.reset(QUESTION)
    assert isinstance(heard(env, codec, "I know it.</think>Oslo", "eos"), Invalid)
    hint = env.observe(None, 3000)
    # The end of the message was sampled and is not repeated.
    assert hint.text.startswith("<｜User｜>That turn was not valid: the turn neither searched nor answered.")
    assert hint.text.endswith("</answer>." + R1_AGAIN)
    ids = codec.tokenizer.convert_tokens_to_ids
    assert hint.token_ids.count(ids("<｜User｜>")) == hint.token_ids.count(ids("<｜Assistant｜>")) == 1
    assert codec.eos_token_id not in hint.token_ids
    assert env.thinking
    # The next turn begins in the thought that the frame opened; its search ends in EOS, and the passages get a frame.
    assert heard(env, codec, "So.</think><search>Norway</search>", "eos") == Search("Norway")
    found = env.observe(hits_of(("Norway", "Its capital is Oslo.")), 3000)
    assert found.text == f"<｜User｜><information>\n[1] Norway\nIts capital is Oslo.\n</information>{R1_AGAIN}"
    # A search that ends in its stop string is answered inside the assistant's own message, and no thought is open.
    assert heard(env, codec, "So.</think><search>Norway</search>", "stop") == Search("Norway")
    found = env.observe(hits_of(("Norway", "Its capital is Oslo.")), 3000)
    assert found.text == "\n<information>\n[1] Norway\nIts capital is Oslo.\n</information>\n"
    assert not env.thinking


def test_a_message_without_its_end_token_is_closed_by_the_frame(codecs):
    """A server that speaks in text tells that a turn ended, without the token."""
    codec = codecs["qwen3"]
    env = environment(codec)
    env.reset(QUESTION)
    ids = tuple(codec.encode("prose"))
    assert env.over("prose", Generation(ids, (0.0,) * len(ids), "eos"))
    env.step("prose")
    assert env.observe(None, 3000).text.startswith("<|im_end|>\n<|im_start|>user\nThat turn was not valid")


@pytest.mark.parametrize("chat", ["auto", "never"])
def test_an_observation_closes_a_thought_that_the_budget_cut(codecs, chat):
    codec = codecs["deepseek_r1_distill"]
    env = environment(codec, chat=chat)
    env.reset(QUESTION)
    text = "I think of <search> x </search> and" if chat == "auto" else "<think>of <search> x </search> and"
    assert heard(env, codec, text, "length") == Invalid("the action stands inside a <think> that was not closed")
    assert env.observe(None, 3000).text.startswith("\n</think>\n\nThat turn was not valid: the action stands inside")
    assert not env.thinking
    assert heard(env, codec, "<search>Norway</search>", "stop") == Search("Norway")


def test_frames_count_in_the_budget(codecs, hits_of):
    codec = codecs["deepseek_r1_distill"]
    for room in range(100, 500, 7):
        env = environment(codec, observation_tokens=300)
        env.reset(QUESTION)
        heard(env, codec, "So.</think><search>Norway</search>", "eos")
        found = env.observe(hits_of(("Norway", "Oslo " * 500)), room)
        if hasattr(found, "token_ids"):
            assert len(found.token_ids) <= room - 32
            assert found.text.endswith(f"</information>{R1_AGAIN}")


def test_rag_and_direct_go_the_same_way(codecs, hits_of):
    codec = codecs["deepseek_r1_distill"]
    for kind in ("direct", "cot", "rag"):
        env = environment(codec, kind=kind)
        if isinstance(env.reset(QUESTION), Search):
            env.observe(hits_of(("Norway", "Its capital is Oslo.")), 3000)
        assert env.thinking
        assert isinstance(heard(env, codec, "prose</think>prose", "eos"), Invalid)
        assert env.observe(None, 3000).text.endswith(R1_AGAIN)
        assert heard(env, codec, "<answer>x</answer></think><answer>Oslo</answer>", "stop") == Answer("Oslo")


def test_a_system_message_precedes_the_prompt_and_every_frame_follows_it(codecs):
    env = environment(codecs["qwen2_5"], system="Answer in one word.")
    assert env.reset(QUESTION).text.startswith("<|im_start|>system\nAnswer in one word.<|im_end|>\n<|im_start|>user\n")
    with pytest.raises(ConfigError, match="refuses the messages: System role not supported"):
        gemma = HFCodec(byte_level("chatml", "gemma"))
        environment(gemma, system="Answer in one word.").reset(QUESTION)
    with pytest.raises(ConfigError, match="system needs a chat template, and none applies"):
        environment(HFCodec(byte_level()), system="Answer in one word.").reset(QUESTION)


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
def test_a_template_that_prints_the_date_prints_the_pinned_one(codecs, name):
    assert "Today Date: 26 Jul 2024" in environment(codecs[name]).reset(QUESTION).text
    pinned = environment(codecs[name], date="2031-12-01").reset(QUESTION).text
    assert "Today Date: 01 Dec 2031" in pinned
    today = environment(codecs["llama3_2"], date="today").reset(QUESTION).text
    assert f"Today Date: {datetime.date.today().strftime('%d %b %Y')}" in today
    assert ("strftime_now" in chat_template(name)) is (name == "llama3_2")


def test_the_settings_of_templates_are_read_from_yaml(tmp_path):
    file = tmp_path / "environment.yaml"
    file.write_text("date: 2025-02-03\nsystem: Be brief.\nchat_template_kwargs: {enable_thinking: false}\n")
    settings = load_settings(EnvironmentSettings, file)
    assert settings.date == datetime.date(2025, 2, 3)
    file.write_text(to_yaml(settings))
    assert load_settings(EnvironmentSettings, file) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"system": "x", "chat": "never"}, "system needs a chat template"),
        ({"system": "about {question}"}, "cannot contain {question}"),
        ({"chat_template_kwargs": {"tokenize": True}}, "tokenize is not a variable of the template"),
        ({"date": "tomorrow"}, "date"),
    ],
)
def test_settings_of_templates_say_what_is_wrong(values, message):
    with pytest.raises(ConfigError) as error:
        validate(EnvironmentSettings, values, "x.yaml")
    assert message in str(error.value)
