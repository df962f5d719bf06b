"""What a model's files say against a run is said before its first stage, in one line."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from agent.tiny_families import build_tiny_family
from cli.main import main
from sleuth.errors import ConfigError
from sleuth.settings import validate
from workflows.checks import check_inputs
from workflows.config import RunSettings
from workflows.model_checks import check_model, fit_context

BUDGETS = {"turn_tokens": 50, "observation_tokens": 50}
REACHED = ("warmstart", "grpo")
PLAYED = ("start",)


def settings(policy: dict[str, Any], total: int | None = None, **more: Any) -> RunSettings:
    environment = {"kind": "direct", **(BUDGETS | {"total_tokens": total} if total else {})}
    return validate(RunSettings, {"out": "run", "policy": policy, "environment": environment, **more}, "run.yaml")


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of 256 learned positions."""
    folder = tmp_path_factory.mktemp("short") / "gpt2"
    build_tiny_family(folder, ["who", "?"], "gpt2", context=256)
    return str(folder)


def test_a_transcript_longer_than_the_model_knows_is_refused(short: str) -> None:
    check_model(settings({"model": short}, 256), PLAYED)
    with pytest.raises(ConfigError, match=r"256 positions, but environment\.total_tokens is 257 .*to 256 or less"):
        check_model(settings({"model": short}, 257), PLAYED)


def test_a_run_that_began_with_longer_transcripts_goes_on(short: str, caplog: pytest.LogCaptureFixture) -> None:
    check_model(settings({"model": short}, 257), ("world", "policy"))  # which play nothing
    assert not caplog.records
    check_model(settings({"model": short}, 257), PLAYED, begun=True)
    assert "256 positions, but environment.total_tokens is 257" in caplog.text


def test_what_is_learned_from_needs_a_position_for_its_end(short: str) -> None:
    check_model(settings({"model": short}, 255, grpo={}), REACHED)
    for stage in REACHED:
        with pytest.raises(ConfigError, match="to 255 or less"):
            check_model(settings({"model": short}, 256, **{stage: {}}), REACHED)


@pytest.mark.parametrize(
    ("policy", "where"),
    [
        ({"tiny": {"max_length": 512}}, r"policy\.tiny\.max_length has 512"),
        ({"model": "SHORT", "backend": "vllm", "vllm": {"max_tokens": 200}}, r"policy\.vllm\.max_tokens has 200"),
    ],
)
def test_the_smallest_limit_is_named(short: str, policy: dict[str, Any], where: str) -> None:
    policy = {key: short if value == "SHORT" else value for key, value in policy.items()}
    with pytest.raises(ConfigError, match=where):
        check_model(settings(policy, 4096), PLAYED)


def test_an_adapter_has_its_bases_positions(short: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": short}))
    with pytest.raises(ConfigError, match="256 positions"):
        check_model(settings({"model": str(tmp_path)}, 300), PLAYED)


def test_a_model_whose_configuration_cannot_be_had_is_not_held_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def offline(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("We couldn't connect to 'https://huggingface.co'\nto load the files")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", offline)
    with caplog.at_level(logging.WARNING):
        check_model(settings({"model": "someone/some-model"}, 4096), PLAYED)
    (record,) = (record for record in caplog.records if record.name == "sleuth.run")
    message = record.getMessage()
    assert "not checked" in message and "someone/some-model" in message and "\n" not in message


def test_servers_and_environments_of_ones_own_are_left_alone(short: str) -> None:
    check_model(settings({"model": "http://127.0.0.1:1/v1"}, 4096), PLAYED)
    fresh = {"kind": "my_environment:Mine"}
    check_model(validate(RunSettings, {"out": "r", "policy": {"model": short}, "environment": fresh}, "r"), PLAYED)


def test_a_length_that_nobody_chose_is_the_models(short: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        fitted = fit_context(settings({"model": short})).environment
    assert (fitted.total_tokens, fitted.turn_tokens, fitted.observation_tokens) == (256, 255, 255)
    assert "environment.total_tokens is 256" in caplog.text
    with pytest.raises(ConfigError, match="256 positions"):
        fit_context(settings({"model": short}, 300))


def write_config(tmp_path: Path, policy: dict[str, Any], total: int, **more: Any) -> Path:
    questions = tmp_path / "q.jsonl"
    questions.write_text(json.dumps({"id": "1", "question": "who?", "golden_answers": ["a"]}) + "\n")
    environment = {"kind": "direct", **BUDGETS, "total_tokens": total}
    data = {"train": [{"path": str(questions)}], "dev": str(questions)}
    values = {"out": str(tmp_path / "run"), "policy": policy, "environment": environment, "data": data, **more}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(values))
    return path


def train(config: Path, *options: str) -> Any:
    """The exit status of the command."""
    with pytest.raises(SystemExit) as ended:
        main(["train", str(config), *options])
    return ended.value.code


@pytest.mark.parametrize("option", [[], ["--dry-run"]])
def test_a_run_and_its_dry_run_say_it_first(
    short: str, tmp_path: Path, option: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, {"model": short}, 300, grpo={})
    assert train(config, *option) == 2
    assert "256 positions, but environment.total_tokens is 300" in capfd.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "run").exists()


def test_a_dry_run_without_a_network_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def offline(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", offline)
    assert train(write_config(tmp_path, {"model": "someone/some-model"}, 300, grpo={}), "--dry-run") == 0
    said = " ".join(capfd.readouterr())
    assert "size and memory are not known: cannot read the configuration" in " ".join(said.split())
    assert "GRPO in all: " in said


def test_a_second_adapter_is_refused_unless_the_first_is_merged_before(short: str, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": short}))
    given = {"policy": {"model": str(adapter)}, "total": 200}
    with pytest.raises(ConfigError, match=r"is an adapter already, and grpo\.lora would add a second one"):
        check_model(settings(**given, grpo={"lora": {}}), REACHED)
    check_model(settings(**given, grpo={}), REACHED)
    check_model(settings(**given, grpo={"lora": {}}, warmstart={}), REACHED)
    check_model(settings(**given, grpo={"lora": {}}), ("warmstart",))
    config = write_config(tmp_path, {"model": str(adapter)}, 200, grpo={"lora": {}})
    with pytest.raises(ConfigError, match="is an adapter already"):
        check_inputs(validate(RunSettings, json.loads(config.read_text()), "run.yaml"), "grpo")
