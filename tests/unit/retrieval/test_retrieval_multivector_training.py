"""ColBERT by the command: rounds that mine with it, a query tower against frozen passages, an adapter on a decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_retrieval_training_pipeline import WORDS, config

from cli.train_retriever import train_retriever
from retrieval.config import RetrieverSettings
from retrieval.open import open_retriever
from sleuth.errors import ConfigError

SMALL = {"query_max_tokens": 16, "passage_max_tokens": 16, "dimensions": 16, "expand_to": 12}
SHAPE = {"vocabulary": 120, "hidden_size": 32, "layers": 1, "heads": 2, "dropout": 0.0}
LEARN = {"batch_size": 6, "steps": 30, "learning_rate": 5e-3, "log_steps": 10, "temperature": 1.0}


def start(folder: Path, **scratch: Any) -> dict[str, Any]:
    return {
        "preset": "colbert",
        "scratch": SHAPE | scratch,
        "scratch_corpus": str(folder / "data"),
        "settings": SMALL,
    }


def test_rounds_then_a_query_tower_that_searches_the_old_index(tmp_path: Path) -> None:
    bm25 = {"kind": "bm25", "index": str(tmp_path / "bm25"), "corpus": str(tmp_path / "data")}
    mining = {"retriever": bm25, "last_rank": 3}
    rounds = {"rounds": 2, "round_corpus": str(tmp_path / "data")}
    path = config(tmp_path, encoder=start(tmp_path), mining=mining, training=LEARN, **rounds)
    train_retriever(path)
    run = tmp_path / "run"
    assert json.loads((run / "index" / "manifest.json").read_text())["kind"] == "multivector"
    assert json.loads((run / "round-1" / "index" / "manifest.json").read_text())["kind"] == "multivector"
    retriever = open_retriever(run / "index")
    found = retriever.search([f"tell of {word}" for word in WORDS], 1)
    assert sum(hits[0].passage.id == f"p{i}" for i, hits in enumerate(found)) >= 9

    values = yaml.safe_load(path.read_text())
    frozen = LEARN | {"kind": "frozen_passages", "against": "all", "steps": 5}
    more = {
        "encoder": str(run / "encoder"),
        "out": str(tmp_path / "more"),
        "training": frozen,
        "rounds": 1,
        "evaluation": None,
    }
    path.write_text(yaml.safe_dump(values | more | {"index": None, "mining": None}))
    train_retriever(path)
    tuned = {"index": str(run / "index"), "encoder": str(tmp_path / "more" / "encoder")}
    old = open_retriever(RetrieverSettings.model_validate(tuned))
    assert old.fingerprint != retriever.fingerprint
    assert len(old.search(["tell of amber"], 3)[0]) == 3

    taking = values | more | {"index": None, "mining": None, "out": str(tmp_path / "third")}
    path.write_text(yaml.safe_dump(taking | {"training": frozen | {"index": str(run / "index")}}))
    with pytest.raises(ConfigError, match="vectors are taken from a dense index only"):
        train_retriever(path)


def test_an_adapter_on_a_decoder_is_trained_and_indexed(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        encoder=start(tmp_path, family="llama"),
        mining=None,
        training=LEARN | {"steps": 3, "lora": {"r": 2}},
        evaluation=None,
    )
    train_retriever(path)
    assert (tmp_path / "run" / "encoder" / "adapter_model.safetensors").is_file()
    assert len(open_retriever(tmp_path / "run" / "index").search(["tell of amber"], 3)[0]) == 3
