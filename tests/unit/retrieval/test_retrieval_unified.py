"""One retriever for texts, pages and two languages: one config trains it, one suite measures it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import run

from retrieval.corpus import BadRow, read_rows
from retrieval.encoders.config import preset
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.encoders.page_config import PageScratchSettings
from retrieval.encoders.scratch import make_backbone
from retrieval.pages.config import PageSettings
from retrieval.pages.write import write_pages

TOWNS = {
    "texts": ["Oslo", "Bergen", "Molde", "Voss"],
    "pages": ["Narvik", "Tromso", "Hamar", "Alta"],
    "russian": ["Омск", "Томск", "Пермь", "Тверь"],
}


def source(folder: Path, names: list[str]) -> Path:
    """A BEIR folder with a passage and a question for each town."""
    (folder / "qrels").mkdir(parents=True)
    for file, rows in (
        ("corpus", [{"_id": name, "title": name, "text": f"{name} town."} for name in names]),
        ("queries", [{"_id": f"q{name}", "text": f"{name} town?"} for name in names]),
    ):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = "".join(f"q{name}\t{name}\t1\n" for name in names)
    (folder / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    root = tmp_path_factory.mktemp("unified")
    made = {name: source(root / f"{name}-texts", towns) for name, towns in TOWNS.items()}
    write_pages(made["pages"], root / "pages", PageSettings(width=96, height=48, size=13, cell=(8, 16), margin=0))
    return {**made, "pages": root / "pages"}


def test_pages_are_mined_by_their_text_layer_and_tuned_by_an_adapter(
    folders: Mapping[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pages, start = folders["pages"], tmp_path / "start"
    sizes = PageScratchSettings(family="pages", hidden_size=32, layers=1, heads=2, spelling=1)
    make_backbone(tmp_path / "trunk", [f"{name} town." for name in TOWNS["pages"]], sizes)
    new_encoder(preset("plain", str(tmp_path / "trunk"), reads="image", passage_prompt="")).save(start)
    config = {
        "out": str(tmp_path / "run"),
        "encoder": {"backbone": str(start)},
        "data": [{"path": str(pages)}],
        "mining": {
            "retriever": {"kind": "bm25", "index": str(tmp_path / "bm25"), "corpus": str(pages / "corpus.jsonl")},
            "negatives": 2,
            "last_rank": 4,
        },
        "training": {
            "batch_size": 2,
            "hard_negatives": 1,
            "steps": 3,
            "learning_rate": 0.01,
            "lora": {"r": 2, "alpha": 4},
        },
        "merge_adapter": True,
    }
    (tmp_path / "lora.yaml").write_text(yaml.safe_dump(config))
    assert run("train-retriever", str(tmp_path / "lora.yaml")) == 0, capfd.readouterr().err
    mined = [json.loads(line) for file in (tmp_path / "run").rglob("*.jsonl") for line in file.open()]
    negatives = [passage for row in mined for passage in row.get("negative_passages", ())]
    assert negatives and all("image" in passage for passage in negatives)
    before, after = load_encoder(start), load_encoder(tmp_path / "run" / "encoder")
    rows = [row.passage for row in read_rows(pages) if not isinstance(row, BadRow)]
    moved = before.encode_passages(rows).values - after.encode_passages(rows).values
    assert moved.isfinite().all() and moved.abs().max() > 1e-4


def test_one_config_trains_on_all_and_one_suite_measures_it(
    folders: Mapping[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    letters = tmp_path / "letters.jsonl"
    letters.write_text(
        "".join((folders[name] / "corpus.jsonl").read_text() for name in ("texts", "russian"))
        + "".join(json.dumps({"_id": name, "title": "", "text": name}) + "\n" for name in TOWNS["pages"])
    )
    config: dict[str, Any] = {
        "out": str(tmp_path / "run"),
        "encoder": {
            "preset": "plain",
            "scratch": {"family": "pages", "hidden_size": 32, "layers": 1, "heads": 2, "spelling": 1},
            "scratch_corpus": str(letters),
            "settings": {"reads": "image", "query_max_tokens": 16, "passage_max_tokens": 32, "passage_prompt": ""},
        },
        "data": [
            {"path": str(folders["texts"]), "weight": 2},
            {"path": str(folders["pages"]), "weight": 1, "cap": 3},
            {"path": str(folders["russian"]), "weight": 1},
        ],
        "training": {"batch_size": 3, "hard_negatives": 0, "steps": 6, "batches": "one_source"},
    }
    (tmp_path / "unified.yaml").write_text(yaml.safe_dump(config, allow_unicode=True))
    assert run("train-retriever", str(tmp_path / "unified.yaml")) == 0, capfd.readouterr().err
    encoder = tmp_path / "run" / "encoder"
    assert load_encoder(encoder).modalities.passage == {"text", "image"}
    sets = {name: {"folder": str(folder), "split": "train"} for name, folder in folders.items()}
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump({"sets": sets}))
    index = f"{{kind: dense, index: {tmp_path}/i-{{set}}, encoder: {encoder}}}"
    capfd.readouterr()
    assert run("evaluate-retrieval", index, "--suite", str(tmp_path / "suite.yaml"), "--json") == 0
    said = capfd.readouterr()
    found = json.loads(said.out)
    assert found["sets"].keys() == TOWNS.keys()
    for name in ("nDCG@10", "R@5"):
        assert all(0 < found["sets"][column][name] <= 1 for column in TOWNS)
        assert found["mean"][name] == pytest.approx(sum(found["sets"][c][name] for c in TOWNS) / 3)
    assert "mean" in said.err and "nDCG@10" in said.err and "R@5" in said.err
    assert json.loads((tmp_path / "i-pages" / "manifest.json").read_text())["modalities"] == ["image+text"]
