"""Whole runs with sparse encoders by the command: SPLADE in rounds, then what it expands; what cannot be trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import test_retrieval_training_pipeline as pipeline
import yaml
from typer.testing import CliRunner

from cli.search import search
from cli.train_retriever import train_retriever
from retrieval.encoders.loading import load_encoder
from retrieval.encoders.sparse_config import SparseEncoderSettings
from retrieval.open import open_retriever
from sleuth.errors import ConfigError

TRAINING = {"preset": "splade", "batch_size": 6, "micro_batch": 3, "steps": 40, "learning_rate": 5e-3, "log_steps": 20}


def start(preset: str, **settings: Any) -> dict[str, Any]:
    return {
        "preset": preset,
        "scratch": {"vocabulary": 120, "hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.0},
        "scratch_corpus": "data",
        "settings": {"query_max_tokens": 16, "passage_max_tokens": 24, **settings},
    }


def run(folder: Path, out: str, encoder: dict[str, Any], **changes: Any) -> Path:
    path = folder / "config.yaml"
    if not path.exists():
        pipeline.config(folder)
    values = yaml.safe_load(path.read_text()) | {"out": str(folder / out), "training": TRAINING} | changes
    values["encoder"] = encoder | {"scratch_corpus": str(folder / "data")}
    (folder / f"{out}.yaml").write_text(yaml.safe_dump(values))
    train_retriever(folder / f"{out}.yaml")
    return folder / out


def test_splade_is_trained_in_rounds_and_expands_what_unicoil_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "test_retrieval_training_pipeline", pipeline)
    splade = run(tmp_path, "splade", start("splade"), rounds=2, round_corpus=str(tmp_path / "data"))
    assert json.loads((splade / "stages" / "index.json").read_text())["recall"] >= 0.9
    lines = [json.loads(line) for line in (splade / "round-1" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["flops_passage"] >= 0 and line["flops_query"] >= 0 for line in lines if "loss" in line)
    assert json.loads((splade / "index" / "manifest.json").read_text())["kind"] == "sparse"
    shown = CliRunner().invoke(_program(), [str(splade / "index"), "tell of coral", "-k", "1", "--explain"])
    assert "Coral" in shown.stdout
    assert " %  " in shown.stdout
    expansion = {"encoder": str(splade / "encoder"), "terms": 3}
    unicoil = run(tmp_path, "unicoil", start("unicoil", expansion=expansion))
    settings = load_encoder(unicoil / "encoder").settings
    assert isinstance(settings, SparseEncoderSettings)
    assert settings.expansion is not None
    found = open_retriever(unicoil / "index", resilient=False).search(["tell of coral"], 1)
    assert found[0][0].passage.title == "Coral"


def _program() -> Any:
    import typer

    app = typer.Typer()
    app.command()(search)
    return app


def test_queries_without_a_model_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_retrieval_training_pipeline", pipeline)
    few = {"training": {**TRAINING, "steps": 4}, "index": None, "evaluation": None}
    made = run(tmp_path, "doc", start("splade_doc"), **few)
    weights = load_encoder(made / "encoder").tower("query").state_dict()
    assert any((weight != 1).any() for weight in weights.values())
    with pytest.raises(ConfigError, match="an adapter is not trained with separate towers"):
        run(tmp_path, "lora", start("splade_doc"), **{**few, "training": {**TRAINING, "lora": {"r": 2}}})


def test_fixed_queries_cannot_be_trained_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_retrieval_training_pipeline", pipeline)
    training = {key: value for key, value in TRAINING.items() if key != "lora"} | {"train": "query", "steps": 3}
    few = {"training": training, "index": None, "evaluation": None}
    run(tmp_path, "splade", start("splade"), **few)
    with pytest.raises(ConfigError, match="the queries of this encoder have no weights to train"):
        run(tmp_path, "impact", start("deepimpact"), **few)
    monkeypatch.setattr("retrieval.training.start.TABLE_BYTES", 100)
    with pytest.raises(ConfigError, match=r"a table of 12 passages by \d+ words takes"):
        run(tmp_path, "large", start("splade"), **few)


def test_a_llama_from_scratch_weighs_no_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "test_retrieval_training_pipeline", pipeline)
    encoder = start("splade")
    encoder["scratch"] = {"family": "llama", "vocabulary": 120, "hidden_size": 32, "layers": 1, "heads": 2}
    with pytest.raises(ConfigError, match="a llama from scratch has no masked-LM head"):
        run(tmp_path, "llama", encoder)
