"""A world small enough to be carried and run in seconds: questions, passages, a policy and an encoder."""

import json
from pathlib import Path

import pytest
import yaml

from agent.tiny import build_tiny_policy
from agent.tiny_config import TinySettings
from retrieval.encoders.config import ScratchSettings, preset
from retrieval.encoders.loading import new_encoder
from retrieval.encoders.scratch import make_backbone

PLACES = ["Arden", "Brill", "Corvo", "Dunmore", "Estray", "Fallow"]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``run.yaml``, whose index is BM25's, and ``encoder``."""
    folder = tmp_path_factory.mktemp("world")
    texts = [f"{place} is a town on the river {place}water." for place in PLACES]
    passages = [{"_id": f"p{i}", "title": PLACES[i], "text": text} for i, text in enumerate(texts)]
    questions = [
        {
            "id": f"q{i}",
            "question": f"on which river is {place}",
            "golden_answers": [f"{place}water"],
            "metadata": {"kind": "single", "supporting_titles": [place], "gold_ids": [f"p{i}"]},
        }
        for i, place in enumerate(PLACES)
    ]
    for name, rows in (("corpus", passages), ("train", questions[:4]), ("dev", questions[4:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEF.,?:")
    words = [*PLACES, *["on", "which", "river", "is", "a", "town", "the"], *(f"{place}water" for place in PLACES)]
    vocabulary = [*words, *letters, *(f"##{letter}" for letter in letters)]
    build_tiny_policy(folder / "policy", vocabulary, TinySettings(hidden_size=32, layers=2, max_length=2048), seed=0)
    small = ScratchSettings(vocabulary=200, hidden_size=32, layers=1, heads=2, max_positions=64)
    make_backbone(folder / "bert", texts, small)
    limits = {"query_max_tokens": 16, "passage_max_tokens": 32}
    new_encoder(preset("plain", str(folder / "bert"), **limits)).save(folder / "encoder")
    values = {
        "out": str(folder / "run"),
        "policy": {"model": str(folder / "policy")},
        "environment": {
            "preset": "minimal",
            "top_k": 1,
            "searches": 2,
            "turns": 3,
            "turn_tokens": 160,
            "total_tokens": 1200,
        },
        "retriever": {
            "kind": "bm25",
            "index": "{out}/index",
            "corpus": str(folder / "corpus.jsonl"),
            "window": {"words": 8},
        },
        "data": {"train": [{"path": str(folder / "train.jsonl")}], "dev": str(folder / "dev.jsonl")},
        "demonstrations": {"sources": [str(folder / "train.jsonl")], "require_titles": False},
        "warmstart": {"batch_size": 4, "learning_rate": 1e-3},
        "grpo": {"steps": 6, "questions": 2, "group_size": 2, "eval_steps": 2, "save_steps": 1},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return folder
