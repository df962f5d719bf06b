"""What is wrong with a run is said before its first stage; what is mended may be resumed; what it will cost."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from agent.config import PolicySettings
from agent.policies.loading import load_policy_model
from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from sleuth.errors import ArtifactError, ConfigError, DataError, PolicyError, SleuthError
from sleuth.runs import RunFolder
from sleuth.settings import validate
from workflows.checks import check_inputs
from workflows.config import RunSettings, load_run_settings
from workflows.context import StageContext
from workflows.estimate import estimate_lines
from workflows.report.compact import pack_runs, unpack
from workflows.stages import not_begun, run_stages


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    build_tiny_policy(
        folder, ["who"], TinySettings(hidden_size=32, layers=2, intermediate_size=32, max_length=8192), seed=0
    )
    return folder


def settings(folder: Path, model: Path, **more: Any) -> RunSettings:
    """Of a run that has all that it needs."""
    questions = folder / "q.jsonl"
    rows = [{"id": str(i), "question": "who?", "golden_answers": ["a"], "metadata": {"type": "x"}} for i in range(3)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    passages = [{"_id": str(i), "title": "A", "text": "b"} for i in range(5)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in passages))
    values: dict[str, Any] = {
        "out": str(folder / "run"),
        "policy": {"model": str(model)},
        "retriever": {"index": str(folder / "run" / "index"), "corpus": str(folder / "corpus.jsonl")},
        "data": {"train": [{"path": str(questions)}], "dev": str(questions)},
        "demonstrations": {"sources": [str(questions)]},
        "warmstart": {},
        "grpo": {},
    }
    return validate(RunSettings, values | more, "run.yaml")


def test_a_run_that_has_what_it_needs_is_let_through(tmp_path: Path, model: Path) -> None:
    check_inputs(settings(tmp_path, model), "grpo")


MADE = {"index": "none", "corpus": "QUESTIONS", "encoder": "none"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"demonstrations": {"sources": ["none.json"]}}, "none.json"),
        ({"demonstrations": {"sources": ["RUNS"]}}, "has runs of a policy, not questions (name it as {kind: runs"),
        ({"demonstrations": {"sources": [{"kind": "runs", "path": "QUESTIONS"}]}}, "q.jsonl, line 1: not a run"),
        (
            {"demonstrations": {"sources": [{"kind": "runs", "path": "RUNS"}]}},
            "line 1: message 1 has the role 'critic'",
        ),
        ({"retriever": {"index": "none"}}, "no index at none"),
        ({"retriever": {"index": "none", "corpus": "none.jsonl"}}, "no corpus at none.jsonl"),
        ({"retriever": {"kind": "hybrid", "parts": [{"index": "none"}, {"index": "more"}]}}, "no index at none"),
        ({"cluster": {"index_shards": 2}}, "needs a dense index of type flat, not a retriever of kind bm25"),
        (
            {
                "cluster": {"index_shards": 2},
                "retriever": {"kind": "dense", "index_type": "hnsw", **MADE},
            },
            "needs a dense index of type flat, not one of type hnsw",
        ),
        (
            {"cluster": {"index_shards": 2}, "retriever": {"kind": "sparse", **MADE}},
            "needs a dense index of type flat, not a retriever of kind sparse",
        ),
        ({"warmstart": {"trajectories": "none.jsonl"}}, "there is no none.jsonl"),
        ({"warmstart": {"trajectories": "RUNS"}}, "has runs of others, not trajectories of ours"),
        ({"demonstrations": None}, "no demonstrations to learn from"),
        ({"policy": {"model": "MODEL", "device": "gpu"}}, "policy.device is 'gpu'"),
        ({"policy": {"model": "MODEL", "device": "cuda:99"}}, "policy.device is 'cuda:99', but torch finds"),
        ({"policy": {"model": "MODEL", "backend": "vlm"}}, "did you mean 'vllm'"),
        (
            {"environment": {"kind": "cot"}, "grpo": {"credit": {"kind": "turns", "score": "information_gain"}}},
            "judges searches, and the environment cot makes none",
        ),
        ({"environment": {"kind": "no.such:Environment"}}, "cannot import no.such"),
        ({"rewards": []}, "no reward is set"),
        ({"rewards": [{"kind": "f1"}, {"kind": "f1"}]}, "two rewards are called 'f1'"),
        ({"rewards": [{"kind": "no.such:Reward"}]}, "cannot import no.such"),
        ({"rewards": [{"kind": "judge", "base_url": "http://j/v1", "model": "m", "cache": "FOLDER"}]}, "is a folder"),
        ({"grpo": {"credit": {"kind": "turns", "score": "no.such:Judge"}}}, "cannot import no.such"),
        ({"data": {"train": [{"path": "QUESTIONS", "kinds": ["y"]}], "dev": "QUESTIONS"}}, "no question of kind y"),
        ({"data": {"train": [{"path": "BROKEN"}], "dev": "QUESTIONS"}}, "line 2"),
        ({"data": {"train": [{"path": "QUESTIONS"}], "dev": "QUESTIONS", "test": "none.jsonl"}}, "none.jsonl"),
    ],
)
def test_what_is_missing_or_broken_is_said_first(
    tmp_path: Path, model: Path, more: dict[str, Any], message: str
) -> None:
    (tmp_path / "broken.jsonl").write_text('{"id": "1", "question": "who?", "golden_answers": ["a"]}\n{"id": \n')
    places = {"MODEL": str(model), "QUESTIONS": str(tmp_path / "q.jsonl"), "BROKEN": str(tmp_path / "broken.jsonl")}
    run = {"id": "r", "question": "who?", "golden_answers": ["a"], "messages": [{"role": "critic", "content": "No."}]}
    (tmp_path / "runs.jsonl").write_text(json.dumps(run) + "\n")
    places |= {"FOLDER": str(tmp_path), "RUNS": str(tmp_path / "runs.jsonl")}
    text = json.dumps(more)
    for name, path in places.items():
        text = text.replace(name, path)
    with pytest.raises(SleuthError) as caught:
        check_inputs(settings(tmp_path, model, **json.loads(text)), "grpo")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_stages_read_that_are_done_may_have_gone(tmp_path: Path, model: Path) -> None:
    gone = settings(tmp_path, model, demonstrations={"sources": ["none.json"]})
    check_inputs(gone, "grpo", done=["demonstrate"])
    with pytest.raises(DataError):
        check_inputs(gone, "grpo")


@pytest.mark.parametrize(
    ("more", "extra"),
    [
        ({"grpo": {"report_to": ["wandb"]}}, "wandb"),
        ({"grpo": {"report_to": ["trackio"]}}, "trackio"),
        ({"sinks": ["tensorboard"]}, "tensorboard"),
    ],
)
def test_a_reporter_that_is_not_installed_is_one_line(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], extra: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == extra else found(name, *a))
    with pytest.raises(SleuthError, match=rf"{extra}.*pip install 'sleuth-rl\[{extra}\]'"):
        check_inputs(settings(tmp_path, model, **more), "grpo")


@pytest.mark.parametrize(("more", "message"), [({"seed": -1}, "seed"), ({"warmstart": {"micro_batch": 5}}, "32")])
def test_settings_that_cannot_be_are_refused(tmp_path: Path, model: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(tmp_path, model, **more)


def test_a_stage_without_its_section_is_refused(tmp_path: Path, model: Path) -> None:
    for stage, section in (("demonstrate", "demonstrations"), ("warmstart", "warmstart")):
        with pytest.raises(ConfigError, match=f"no {section} section"):
            check_inputs(settings(tmp_path, model, **{section: None}), stage)


def test_a_stage_that_left_nothing_may_be_resumed_with_other_settings(tmp_path: Path, model: Path) -> None:
    """A plan that leads nowhere ends the first try; the second one names another file."""
    with pytest.raises(DataError, match="names its supporting passages"):
        run_stages(settings(tmp_path, model), until="demonstrate", resume=False, overwrite=False)
    row = {"id": "1", "question": "who is b?", "golden_answers": ["b"], "metadata": {"supporting_titles": ["A"]}}
    (tmp_path / "good.jsonl").write_text(json.dumps(row) + "\n")
    mended = {"sources": [str(tmp_path / "good.jsonl")]}
    given = settings(tmp_path, model, demonstrations=mended)
    run_stages(given, until="demonstrate", resume=True, overwrite=False)
    with pytest.raises(SleuthError, match=r"was started with demonstrations"):
        run_stages(settings(tmp_path, model), until="demonstrate", resume=True, overwrite=False)


@pytest.mark.parametrize(
    ("left", "changed", "kept"),
    [
        ([], {"demonstrations": None, "warmstart": {"epochs": 2}, "grpo": {"steps": 3}}, {}),
        (["warmstart_checkpoints"], {"grpo": {"steps": 3}}, {"warmstart": {"epochs": 2}}),
        (["grpo"], {}, {"grpo": {"steps": 3}}),
        (["grpo"], {}, {"warmstart": {"epochs": 2}}),
        (["grpo"], {}, {"demonstrations": None}),
    ],
)
def test_a_run_that_has_come_further_keeps_what_is_behind_it(
    tmp_path: Path, model: Path, left: list[str], changed: dict[str, Any], kept: dict[str, Any]
) -> None:
    """A stage that left nothing because it was skipped is not done after a later one has begun."""
    given = settings(tmp_path, model)
    run = StageContext(given, RunFolder(given.out), resume=True)
    with run.folder.claim(given.model_dump(mode="json")):
        for name in left:
            (given.out / name).mkdir()

    def resumed(more: dict[str, Any]) -> None:
        plain = settings(tmp_path, model, **more).model_dump(mode="json")
        with run.folder.claim(plain, resume=True, may_differ=not_begun(run)):
            pass

    for section, value in kept.items():
        with pytest.raises(ArtifactError, match=f"was started with {section}"):
            resumed({section: value})
    resumed(changed)


def test_a_run_of_before_there_were_credit_schemes_is_resumed(tmp_path: Path, model: Path) -> None:
    given = settings(tmp_path, model)
    old = given.model_dump(mode="json")
    old["grpo"] = {name: value for name, value in old["grpo"].items() if name != "credit"} | {"scale_rewards": "group"}
    with RunFolder(given.out).claim(old):
        (given.out / "grpo").mkdir()
    run_stages(given, until="world", resume=True, overwrite=False)
    with RunFolder(given.out).claim(old, resume=True, may_differ=["grpo"]):
        pass
    other = settings(tmp_path, model, grpo={"credit": {"scale": "none"}})
    with pytest.raises(ArtifactError, match=r"started with grpo\.credit\.scale = 'group', not 'none'"):
        run_stages(other, until="world", resume=True, overwrite=False)


def test_a_run_is_resumed_under_its_own_prompts_only(tmp_path: Path, model: Path) -> None:
    plain = settings(tmp_path, model)
    old = plain.model_dump(mode="json")
    for name in ("prompts", "prompt_tokens"):  # as saved before there were any
        del old["environment"][name]
    with RunFolder(plain.out).claim(old):
        pass
    run_stages(plain, until="world", resume=True, overwrite=False)
    own = settings(tmp_path, model, environment={"prompts": {"search": "Find {question}: ${HOME:-x} "}})
    with pytest.raises(ArtifactError, match=r"started with environment\.prompts\.search = None, not 'Find"):
        run_stages(own, until="world", resume=True, overwrite=False)
    run_stages(own, until="world", resume=False, overwrite=True)
    run_stages(own, until="world", resume=True, overwrite=False)
    assert load_run_settings(own.out / "config.yaml") == own
    with pytest.raises(ArtifactError, match=r"started with environment\.prompts\.search = 'Find .*, not None"):
        run_stages(plain, until="world", resume=True, overwrite=False)
    shown = unpack(pack_runs([own.out], 0, 10**6))["runs"][0]["config"]
    assert shown["environment.prompts.search"] == "Find {question}: ${HOME:-x} "


def test_a_world_does_not_make_the_files_that_lie_elsewhere(tmp_path: Path, model: Path) -> None:
    made = {"train": [{"path": str(tmp_path / "run" / "world" / "train.jsonl")}], "dev": str(tmp_path / "q.jsonl")}
    check_inputs(settings(tmp_path, model, world={}, data=made), "grpo")
    with pytest.raises(DataError, match=r"none\.jsonl"):
        check_inputs(settings(tmp_path, model, world={}, data=made | {"test": "none.jsonl"}), "grpo")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "tokenizer.json", "config.json"])
def test_a_damaged_policy_is_one_line(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "policy"
    build_tiny_policy(
        folder, ["who"], TinySettings(hidden_size=32, layers=2, intermediate_size=32, max_length=8192), seed=0
    )
    (folder / name).write_bytes((folder / name).read_bytes()[:20])
    with pytest.raises(PolicyError) as caught:
        load_policy_model(PolicySettings(model=str(folder)), str(folder))
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_an_adapter_that_does_not_say_what_it_is_is_one_line(tmp_path: Path, model: Path) -> None:
    for config in ('{"base_model_name_or_path": "BASE"}', "{"):
        (tmp_path / "adapter_config.json").write_text(config.replace("BASE", str(model)))
        with pytest.raises(PolicyError):
            load_policy_model(PolicySettings(model=str(tmp_path)), str(tmp_path))


def test_the_estimate_is_of_every_stage_that_is_reached(tmp_path: Path, model: Path) -> None:
    given = settings(tmp_path, model, grpo={"lora": {}})
    policy, warm, rollout, updates, whole, memory = estimate_lines(given, "grpo")
    assert "at most 65,536 tokens per step" in warm  # 32 demonstrations of 2,048 tokens
    assert "two Adam moments" in warm and "the adapter" in memory and "two Adam moments" not in memory
    assert rollout == "a rollout: 8 questions x 8 = 64 trajectories, at most 262,144 tokens"
    assert updates == "its updates: 1 of 64 trajectories, in micro-batches of 64"
    assert whole.startswith("GRPO in all: 100 rollouts, 100 updates (0 of warm-up), 800 questions, 6,400 trajectories")
    assert estimate_lines(given, "warmstart") == [policy, warm]


def test_the_estimate_of_an_adapter_counts_its_base_which_is_not_trained(tmp_path: Path, model: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(model)}))
    alone = estimate_lines(settings(tmp_path, model), "grpo")
    policy, warm, *merged = estimate_lines(settings(tmp_path, tmp_path / "adapter"), "grpo")
    assert [policy, *merged] == [alone[0], *alone[2:]] and "two Adam moments, reference" in merged[-1]
    assert "the adapter" in warm and "Adam" not in warm
    *_, memory = estimate_lines(settings(tmp_path, tmp_path / "adapter", warmstart=None), "grpo")
    assert "the adapter" in memory and "Adam" not in memory and "reference" not in memory
    with pytest.raises(PolicyError, match=r"configuration of policy\.model"):
        estimate_lines(settings(tmp_path, tmp_path), "grpo")
