"""Made-up passages, as a corpus file and as an index built from it once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sleuth.types import Passage

CITIES = ("Arden", "Brill", "Corvo", "Dunmore", "Estray", "Fallow")


def make_passages() -> list[Passage]:
    cities = [Passage(f"c{i}", city, f"{city} is a town on the river {city}water.") for i, city in enumerate(CITIES)]
    twins = [Passage(f"t{i}", "Twin", "Two halls that nobody can tell apart.") for i in (3, 1, 2)]
    odd = [
        Passage("ü/😀 id", "Éclair — “東京”", "A café in 東京 sells éclairs \u0000 to 😀 people."),
        Passage("long", "Long", "x" * 1_000_000 + " onetoken"),
    ]
    return [*cities, *twins, *odd]


@pytest.fixture(scope="session")
def passages() -> list[Passage]:
    return make_passages()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, passages: list[Passage]) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [{"_id": p.id, "title": p.title, "text": p.text} for p in passages]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def index(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    from retrieval.bm25 import build_bm25

    path = tmp_path_factory.mktemp("index") / "bm25"
    build_bm25(corpus, path)
    return path


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained BERT of one layer, whose mean states tell words apart well enough."""
    from retrieval.encoders.config import ScratchSettings
    from retrieval.encoders.scratch import make_backbone

    path = tmp_path_factory.mktemp("backbone") / "bert"
    texts = [f"{p.title} {p.text[:200]}" for p in make_passages()]
    make_backbone(path, texts, ScratchSettings(vocabulary=300, hidden_size=64, layers=1, heads=2, max_positions=64))
    return path


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    from retrieval.encoders.config import preset
    from retrieval.encoders.loading import new_encoder

    path = tmp_path_factory.mktemp("encoder") / "plain"
    new_encoder(preset("plain", str(backbone), query_max_tokens=32, passage_max_tokens=48)).save(path)
    return path


@pytest.fixture(scope="session")
def colbert_folder(tmp_path_factory: pytest.TempPathFactory, backbone: Path) -> Path:
    """An untrained late-interaction encoder on ``backbone``, as a folder."""
    from retrieval.encoders.config import preset
    from retrieval.encoders.loading import new_encoder

    path = tmp_path_factory.mktemp("colbert") / "e"
    limits = {"query_max_tokens": 24, "passage_max_tokens": 40, "expand_to": 16}
    new_encoder(preset("colbert", str(backbone), dimensions=16, **limits)).save(path)
    return path
