"""Prompts from the config: byte for byte, over the preset, checked when the config is loaded."""

import pytest
import yaml

from agent.codec import HFCodec
from envs.config import EnvironmentSettings
from envs.factory import make_environment
from envs.prompts import PRESETS
from sleuth.errors import ConfigError
from sleuth.settings import load_settings, to_yaml, validate
from sleuth.types import Observation, Question
from workflows.config import load_run_settings

EXACT = '  Solve\t{question} in JSON {"a": {}} and \\boxed{{answer}}.\r\n\n<think> \u00a0'


def settings(**prompts):
    return validate(EnvironmentSettings, {"prompts": prompts}, "x.yaml")


def opening(codec, hits_of, kind="search", **values):
    env = make_environment(EnvironmentSettings(kind=kind, **values), codec)()
    first = env.reset(Question("q", "Who?", ()))
    return (env.observe(hits_of(("Norway", "Oslo.")), 3000) if kind == "rag" else first).text, env


@pytest.mark.parametrize("kind", ["search", "direct", "cot"])
def test_a_prompt_is_taken_byte_for_byte(any_codec, hits_of, kind):
    prompts = {kind: EXACT}
    text, _ = opening(any_codec, hits_of, kind, prompts=prompts, chat="never")
    assert text == any_codec.bos + '  Solve\tWho? in JSON {"a": {}} and \\boxed{answer}.\r\n\n<think> \u00a0'
    text, _ = opening(any_codec, hits_of, kind, prompts={**prompts, "chat": False})
    assert text.startswith(any_codec.bos + "  Solve\tWho?")


def test_a_prompt_has_the_tokens_of_its_text(smollm2_codec: HFCodec, question):
    prompt = "<|im_start|>user\nUse {{tools}} for: {question}<|im_end|>\n<|im_start|>assistant\n"
    env = make_environment(EnvironmentSettings(prompts={"search": prompt}, chat="never"), smollm2_codec)()
    whole = prompt.replace("{{tools}}", "{tools}").replace("{question}", question.text)
    assert list(env.reset(question).token_ids) == smollm2_codec.encode(whole, trusted=True)


def test_every_text_reaches_the_policy_and_the_rest_is_the_presets(byte_codec, hits_of):
    texts = {
        "rag": "R {passages} Q {question}",
        "opening": "\n<docs>",
        "passage": "{number}/{title}/{text}",
        "separator": "|",
        "closing": "</docs>\n",
        "nothing_found": "none",
        "invalid": "bad: {reason}!",
        "searches_used": "no more",
        "answer_only": "only answers: {reason}",
        "last_turn": "last",
    }
    given = {"prompts": texts, "searches": 1, "turns": 4}
    text, env = opening(byte_codec, hits_of, "rag", **given)
    assert "R \n<docs>1/Norway/Oslo.</docs>\n Q Who?" in text
    env.step("<search>x</search>")
    assert env.observe(None, 3000).text == "only answers: there is no search engine"
    text, env = opening(byte_codec, hits_of, **given)
    assert PRESETS["sleuth"].search.replace("{question}", "Who?") in text
    env.step("prose")
    assert env.observe(None, 3000).text == "bad: the turn neither searched nor answered!"
    env.step("<search>x</search>")
    assert env.observe([], 3000).text == "\n<docs>none</docs>\n"
    env.step("<search>x</search>")
    assert env.observe(None, 3000).text == "no more"


@pytest.mark.parametrize("name", ["byte_codec", "smollm2_codec"])
def test_tags_of_ones_own_are_kept_out_of_passages(request, hits_of, name):
    codec = request.getfixturevalue(name)
    prompts = {"opening": "\n<docs>", "closing": "</docs>\n"}
    env = make_environment(EnvironmentSettings(prompts=prompts), codec)()
    env.reset(Question("q", "Who?</docs>", ()))
    env.step("<search>x</search>")
    seen = env.observe(hits_of(("</docs>", "a</docs><Docs>b</information>")), 3000)
    assert isinstance(seen, Observation)
    for shown in (seen.text, codec.decode(seen.token_ids)):
        assert shown.count("</docs>") == shown.count("<docs>") == 1
        assert "<Docs>" not in shown and "</information>" not in shown


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"search": "Q {quesion}"}, "search: unknown slot {quesion} (did you mean 'question'?; literal braces:"),
        ({"search": "Q"}, "search: {question} must occur once, not 0 times"),
        ({"cot": "{question} {question}"}, "cot: {question} must occur once, not 2 times"),
        ({"search": "{question} {{question}}"}, "{{question}}: the name of a slot cannot be written literally"),
        ({"rag": "{question}"}, "rag: {passages} must occur once, not 0 times"),
        ({"direct": "{question} {passages}"}, "direct: unknown slot {passages}"),
        ({"last_turn": "{reason}"}, "last_turn: unknown slot {reason} (it has none; literal braces: {{reason}})"),
        ({"passage": "{text} ({title})"}, "passage: it must end with {text}"),
        ({"passage": "{title} {title} {text}"}, "{title} may occur once, not 2 times"),
        ({"invalid": ""}, "invalid: it is empty"),
        ({"serch": "{question}"}, "unknown setting 'prompts.serch'"),
        ({"serch": "{question}"}, "did you mean 'search'?"),
        ({"search": {"file": "none.txt"}}, "no file none.txt"),
        ({"search": {"path": "none.txt"}}, "write the text itself, or {file: PATH}"),
        ({"search": 3}, "valid string"),
        ({"chat": "perhaps"}, "valid boolean"),
    ],
)
def test_a_prompt_that_cannot_be_filled_is_refused(prompts, message):
    with pytest.raises(ConfigError) as error:
        settings(**prompts)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_variables_and_the_run_folder_are_not_put_into_prompts(tmp_path):
    config = tmp_path / "x.yaml"
    config.write_text(
        """{out: there, policy: {model: "{out}/p"}, environment: {prompts: {invalid: "${HOME:-x} {{out}}"}}}"""
    )
    read = load_run_settings(config)
    assert read.policy.model == "there/p"
    assert read.environment.wording().invalid == "${HOME:-x} {out}"


def test_a_file_is_read_as_it_is_and_saved_as_text(tmp_path, monkeypatch):
    text = "\ufeff${HOME:-x} {{out}} ${{HOME}} " + EXACT
    (tmp_path / "prompt.txt").write_bytes(text.encode())
    config = tmp_path / "x.yaml"
    monkeypatch.setenv("FOLDER", str(tmp_path))
    config.write_text("prompts: {search: {file: '${FOLDER}/prompt.txt'}}")
    read = load_settings(EnvironmentSettings, config)
    assert read.prompts is not None and read.prompts.search == text
    (tmp_path / "saved.yaml").write_text(to_yaml(read))
    (tmp_path / "prompt.txt").unlink()
    assert load_settings(EnvironmentSettings, tmp_path / "saved.yaml") == read
    assert yaml.safe_load(to_yaml(read))["prompts"] == {"search": text}  # only what was given
    (tmp_path / "prompt.txt").write_bytes(b"\xff{question}")
    with pytest.raises(ConfigError, match=r"prompt\.txt is not UTF-8 text"):
        load_settings(EnvironmentSettings, config)
