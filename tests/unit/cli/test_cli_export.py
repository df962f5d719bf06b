"""``sleuth export``: the folder says what the run's policy says, and stands by itself."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_tokenizers import byte_level

import agent.export
from agent.codec import HFCodec
from agent.config import PolicySettings
from agent.policies.loading import load_policy_model
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from cli import main as program
from envs.config import EnvironmentSettings
from envs.prompts import PRESETS
from sleuth.runs import RunFolder
from workflows.exported import protocol_of
from workflows.grid import Options, cells_of
from workflows.model_settings import evaluation_settings, session_settings

WORDS = ["Question", ":", "?", "who", "directed", "the", "film", "Need", "Paris"]
ENVIRONMENT = {"kind": "search", "preset": "minimal", "top_k": 2, "turns": 5, "turn_tokens": 8}
ENVIRONMENT |= {"observation_tokens": 60, "total_tokens": 300}
FIGURES = {"em": 0.625, "em_interval": [0.5, 0.75], "f1": 0.7, "f1_interval": [0.6, 0.8], "n": 40, "searches": 1.5}
TOKENS = torch.tensor([[4, 9, 12, 5, 30, 7]])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    build_tiny_policy(folder, WORDS, TinySettings(hidden_size=32, layers=2), 0)
    return folder


def make_run(folder: Path, policy: dict[str, Any], done: bool = True, **environment: Any) -> Path:
    run = RunFolder(folder)
    chosen = ENVIRONMENT | environment
    config = {"out": str(folder), "seed": 3, "policy": policy, "environment": chosen}
    config["grpo"] = {"steps": 4, "algorithm": "cispo"}
    with run.claim({**config, "data": {"test": "questions/test.jsonl"}}):
        if done:
            run.mark_done("grpo", {"best_step": 4})
    figures = folder / "evaluation" / "grpo-search" / "metrics.json"
    figures.parent.mkdir(parents=True)
    figures.write_text(json.dumps({**FIGURES, "answered": 1.0, "unscored": 0, "scored": 40}))
    lines = [{"step": 0, "dev/em": 0.25}, {"step": 2, "dev/em": 0.9, "dev/unscored": 7}, {"step": 4, "dev/em": 0.75}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "grpo").mkdir()
    outcome = {"best_step": 4, "best_em": 0.75, "last_step": 4}
    (folder / "grpo" / "outcome.json").write_text(json.dumps(outcome))
    return folder


@pytest.fixture
def full(tmp_path: Path) -> Path:
    run = make_run(tmp_path / "full", {"tiny": {"hidden_size": 32, "layers": 2}})
    build_tiny_policy(run / "grpo" / "policy", WORDS, TinySettings(hidden_size=32, layers=2), 7)
    return run


@pytest.fixture
def adapted(tmp_path: Path, tiny: Path) -> Path:
    """A run whose policy is a low-rank adapter that changes something."""
    from peft import LoraConfig, get_peft_model

    run = make_run(tmp_path / "adapted", {"model": str(tiny)})
    model, codec = load_policy_model(PolicySettings(model=str(tiny), device="cpu"), str(tiny))
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    adapted.save_pretrained(run / "grpo" / "policy")
    codec.tokenizer.save_pretrained(run / "grpo" / "policy")
    return run


def export(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        program.main(["export", *arguments])
    return int(ended.value.code or 0)


def logits(source: Path) -> torch.Tensor:
    model, _ = load_policy_model(PolicySettings(model=str(source), device="cpu"), str(source))
    with torch.no_grad():
        return model.eval()(TOKENS).logits


@pytest.mark.parametrize("kind", ["full", "adapted"])
def test_what_is_exported_is_the_policy_of_the_run(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = request.getfixturevalue(kind)
    out = tmp_path / "out"
    assert export(str(run), "--out", str(out)) == 0
    assert not list(out.glob("adapter*"))
    assert torch.allclose(logits(run / "grpo" / "policy"), logits(out), atol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(out)
    with torch.no_grad():
        assert torch.allclose(plain(TOKENS).logits, logits(out))
    _, codec = load_policy_model(PolicySettings(model=str(out), device="cpu"), str(out))
    _, before = load_policy_model(
        PolicySettings(model=str(run / "grpo/policy"), device="cpu"), str(run / "grpo/policy")
    )
    text = "Question: who directed <search> Paris </search> xyz?\n"
    assert codec.encode(text, trusted=True) == before.encode(text, trusted=True)
    assert AutoTokenizer.from_pretrained(out)(text, add_special_tokens=False)["input_ids"] == codec.encode(
        text, trusted=True
    )


def test_an_adapter_is_merged_and_not_dropped(adapted: Path, tiny: Path, tmp_path: Path) -> None:
    assert export(str(adapted), "--out", str(tmp_path / "out")) == 0
    assert not torch.allclose(logits(tmp_path / "out"), logits(tiny), atol=1e-2)


def test_a_command_that_plays_the_folder_has_the_environment_of_the_run(full: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(str(full), "--out", str(out))
    settings = evaluation_settings(str(out), [], data="q.jsonl", retriever=Path("index"))
    assert settings.policy.model == str(out)
    assert settings.environment.model_dump(include=ENVIRONMENT.keys()) == ENVIRONMENT
    assert evaluation_settings(str(out), ["environment.turns=6"], data="q.jsonl", mode="direct").environment.turns == 6


def test_settings_of_the_data_hold_for_the_file_that_is_given() -> None:
    settings = evaluation_settings(
        "some/model", ["data.gold=title", "data.dev_max_answer_words=5"], "q.jsonl", mode="direct"
    )
    assert (settings.data.dev, settings.data.gold, settings.data.dev_max_answer_words) == ("q.jsonl", "title", 5)


def test_the_protocol_stands_in_plain_words(full: Path, tmp_path: Path) -> None:
    export(str(full), "--out", str(tmp_path / "out"))
    protocol = json.loads((tmp_path / "out" / "sleuth.json").read_text())
    assert protocol["prompt"] == "Question: {question}\n"
    assert protocol["stop"] == ["</search>", "</answer>"]
    assert (protocol["thinking"], protocol["frame"]) == (False, None)
    assert protocol["blocks"]["opening"] == "<information>\n"


def test_a_policy_that_calls_tools_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = make_run(tmp_path / "run", {"tiny": {}}, protocol="hermes", tools=["search", "open"]), tmp_path / "out"
    build_tiny_policy(run / "grpo" / "policy", WORDS, TinySettings(hidden_size=32, layers=2), 7, calls=True)
    assert export(str(run), "--out", str(out)) == 0
    protocol = json.loads((out / "sleuth.json").read_text())
    assert protocol["prompt"] == "search\nopen\nQuestion: {question}\n"
    assert protocol["stop"] == ["</answer>", "<tool_response>"]
    assert [tool["name"] for tool in protocol["tools"]] == ["search", "open"]
    assert protocol["results"] == ["<eos>\n<tool_response>\n", "\n</tool_response>\n"]
    settings = evaluation_settings(str(out), [], data="q.jsonl", retriever=Path("index")).environment
    assert (settings.protocol, [tool.kind for tool in settings.tools]) == ("hermes", ["search", "open"])
    card = (out / "README.md").read_text()
    assert "- protocol: hermes, with search, open" in card and "it ends with the message" in card
    assert not {"opening", "closing"} & protocol["blocks"].keys(), "a result stands in a message instead"
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(out)
    exec(code, {})
    assert "Question : Who directed the film?" in capsys.readouterr().out


def test_the_protocol_of_a_thinking_model_has_its_frame() -> None:
    codec = HFCodec(byte_level("deepseek", "deepseek_r1_distill"))
    protocol = protocol_of(EnvironmentSettings(), codec)
    assert protocol["thinking"] and protocol["prompt"].endswith("<｜Assistant｜><think>\n")
    assert protocol["frame"] == {
        "before": "<｜end▁of▁sentence｜><｜User｜>",
        "after": "<｜Assistant｜><think>\n",
    }
    assert protocol["environment"]["date"] == "2024-07-26"


def test_prompts_of_the_runs_own_go_with_the_policy(full: Path, tmp_path: Path) -> None:
    prompts = {"search": "Look for {question}\n\tNow: ", "invalid": "No: {reason}\n"}
    config = yaml.safe_load((full / "config.yaml").read_text())
    config["environment"]["prompts"] = prompts
    (full / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "out"
    export(str(full), "--out", str(out))
    protocol = json.loads((out / "sleuth.json").read_text())
    assert protocol["prompt"] == prompts["search"]
    assert (protocol["blocks"]["invalid"], protocol["blocks"]["searches_used"]) == (prompts["invalid"], "answer now\n")
    assert protocol["rules"] == {"lenient": False, "hard_cut": False, "question_mark": False}
    assert "- prompts: of the run's own: search, invalid;" in (out / "README.md").read_text()
    for settings in (
        evaluation_settings(str(out), [], data="q.jsonl", retriever=Path("index")),
        session_settings(str(out), [], retriever="index"),
    ):
        assert settings.environment.prompts is not None
        assert settings.environment.prompts.model_dump() == prompts
    other = evaluation_settings(str(out), [], data="q.jsonl", retriever=Path("index"), preset="sleuth")
    assert other.environment.wording() == PRESETS["sleuth"]


def test_other_prompts_than_those_of_training_are_said(full: Path, tmp_path: Path) -> None:
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]

    def plan(models: list[str], options: Options, *modes: str) -> None:
        cells_of(models, ["a=a.jsonl", "b=b.jsonl"], ["index"], modes, options)

    logger = logging.getLogger("sleuth.run")
    logger.addHandler(listener)
    export(str(full), "--out", str(tmp_path / "out"))
    try:
        for model in (full, tmp_path / "out"):
            plan([str(model)], Options([]))
            plan([str(model)], Options(["environment.turns=6"]), "direct")
            assert said == []
            plan([str(model)], Options(["environment.prompts.invalid=again"]), "search", "direct")
            assert said == [
                f"{model} was trained with other prompts than it is given"
                " (preset minimal, here minimal; invalid differ)"
            ]
            session_settings(str(model), [], retriever="index", preset="sleuth")
            assert said[1].startswith(f"{model} was trained with other prompts than it is given (preset minimal, here")
            said.clear()
            plan([str(model)], Options(["environment.chat_template_kwargs={enable_thinking: false}"]))
            assert said == [
                f"{model} was trained with other prompts than it is given"
                " (preset minimal, here minimal; chat_template_kwargs differ)"
            ]
            said.clear()
        plan(["smollm2"], Options(["environment.prompts.invalid=again"]))
        assert said == []
    finally:
        logger.removeHandler(listener)


def test_the_card_has_the_measured_figures_and_its_code_runs(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    export(str(full), "--out", str(out))
    card = (out / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "| grpo-search | 40 | 0.625 [0.500, 0.750] | 0.700 [0.600, 0.800] | 1.500 | 1.000 |" in card
    assert "95 % intervals: bootstrap over questions (em, f1).\nQuestions" in card
    assert "0.250 at step 0 and 0.750 at step 4; these are the weights of that step" in card
    assert "- weights trained by reinforcement: all" in card and "- reinforcement: cispo, 4 steps, " in card
    assert "`test.jsonl`" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(out)
    exec(code, {})
    assert "Question : Who directed the film?" in capsys.readouterr().out


def test_an_unfinished_run_is_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", {"tiny": {}}, done=False)
    assert export(str(run), "--out", str(tmp_path / "out")) == 2
    said = capsys.readouterr().err
    assert "not finished: its stage grpo is not done" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_or_trains_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(str(tmp_path), "--out", str(tmp_path / "out")) == 2
    assert "not a finished run" in capsys.readouterr().err
    with RunFolder(tmp_path / "run").claim({"out": str(tmp_path / "run"), "policy": {"tiny": {}}}):
        pass
    assert export(str(tmp_path / "run"), "--out", str(tmp_path / "out")) == 2
    assert "trains no policy" in capsys.readouterr().err


def test_a_folder_is_written_whole_or_not_at_all(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(agent.export, "save_merged", fail)
        assert export(str(full), "--out", str(tmp_path / "out")) == 2
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    assert export(str(full), "--out", str(tmp_path / "out")) == 0
    assert export(str(full), "--out", str(tmp_path / "out")) == 2
    assert "exists already" in capsys.readouterr().err
    assert export(str(full), "--out", str(tmp_path / "out"), "--overwrite") == 0


def test_a_folder_that_is_no_policy_or_the_policy_itself_is_never_replaced(
    full: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    for out in (tmp_path / "mine", full, full / "grpo" / "policy"):
        assert export(str(full), "--out", str(out), "--overwrite") == 2
    assert capsys.readouterr().err.count("\n") == 3
    assert (tmp_path / "mine" / "notes.txt").exists() and (full / "grpo" / "policy" / "config.json").exists()


def test_a_damaged_protocol_is_said(full: Path, tmp_path: Path) -> None:
    from sleuth.errors import ArtifactError
    from workflows.exported import exported_settings

    (tmp_path / "sleuth.json").write_text("{")
    with pytest.raises(ArtifactError, match="damaged"):
        exported_settings(tmp_path)
    assert exported_settings(full) is None
