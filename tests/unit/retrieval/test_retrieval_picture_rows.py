"""Training rows with pictures: colpali-engine's layout, and Tevatron rows that name a path."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as Pillow

from hub.pictures import read_image
from retrieval.passages import content_key
from retrieval.training.config import SourceSettings
from retrieval.training.row import TrainingRow
from retrieval.training.rows import load_rows
from sleuth.errors import DataError


def picture(colour: str) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(picture(colour))
    rows = [{"_id": colour, "title": "", "text": "", "image": f"{colour}.png"} for colour in ("red", "blue")]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def loaded(folder: Path, *rows: dict[str, Any], **source: Any) -> list[TrainingRow]:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rows([SourceSettings(path=str(folder / "rows.jsonl"), **source)])


def shown(row: TrainingRow) -> list[bytes]:
    return [read_image(p.image) for p in (*row.positives, *row.negatives) if p.image is not None]


def test_targets_are_pictures_beside_the_file(folder: Path) -> None:
    (row,) = loaded(folder, {"query": "which?", "pos_target": "red.png", "neg_target": ["blue.png"]})
    assert shown(row) == [picture("red"), picture("blue")] and len(row.negatives) == 1


def test_targets_are_ids_of_a_corpus(folder: Path) -> None:
    row = {"query": "which?", "pos_target": ["red"], "neg_target": None}
    (found,) = loaded(folder, row, corpus=str(folder / "corpus.jsonl"))
    assert found.positives[0].id == "red" and shown(found) == [picture("red")]
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1: the corpus has no passage green"):
        loaded(folder, {**row, "pos_target": "green"}, corpus=str(folder / "corpus.jsonl"))


def test_targets_are_bytes_in_parquet(folder: Path) -> None:
    rows = [{"query": "which?", "pos_target": {"bytes": picture("red"), "path": None}}]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet")
    (row,) = load_rows([SourceSettings(path=str(folder / "rows.parquet"))])
    assert shown(row) == [picture("red")]


def test_a_tevatron_passage_names_its_picture_by_path(folder: Path) -> None:
    positive = {"docid": "1", "title": "T", "image": "red.png"}
    (row,) = loaded(folder, {"query_id": "q", "query": "which?", "positive_passages": [positive]})
    assert (row.positives[0].id, row.positives[0].title) == ("1", "T") and shown(row) == [picture("red")]


@pytest.mark.parametrize("image", ["red.png", {"path": "red.png"}, {"bytes": None, "path": "red.png"}])
def test_a_path_is_a_picture_in_every_form_and_layout(folder: Path, image: object) -> None:
    (row,) = loaded(folder, {"query": "which?", "positive_passages": [{"docid": "1", "image": image}]})
    assert shown(row) == [picture("red")]
    (row,) = loaded(folder, {"query": "which?", "pos_target": image, "neg_target": [image]})
    assert shown(row) == [picture("red")] * 2


def test_a_tevatron_passage_has_its_picture_as_bytes_in_parquet(folder: Path) -> None:
    positive = [{"docid": "1", "text": "T", "image": {"bytes": picture("red"), "path": "gone.png"}}]
    pq.write_table(pa.Table.from_pylist([{"query": "which?", "positive_passages": positive}]), folder / "rows.parquet")
    (row,) = load_rows([SourceSettings(path=str(folder / "rows.parquet"))])
    assert shown(row) == [picture("red")] and row.positives[0].id == "1"


@pytest.mark.parametrize("image", [5, "", True, [], {}, {"bytes": "AAAA", "path": "red.png"}, {"name": "red.png"}])
def test_an_image_that_is_no_picture_is_said_and_null_is_none(folder: Path, image: object) -> None:
    passage = {"docid": "1", "text": "T", "image": image}
    with pytest.raises(DataError, match=r"line 1: the image of 'positive_passages\[0\]' is no picture"):
        loaded(folder, {"query": "which?", "positive_passages": [passage]})
    (row,) = loaded(folder, {"query": "which?", "positive_passages": [{**passage, "image": None}]})
    assert row.positives[0].image is None


def test_each_picture_keeps_its_own_score_and_id(folder: Path) -> None:
    positive, negative = {"image": "red.png", "score": 9}, {"image": "blue.png", "score": -3}
    row = {"query_id": "q", "query": "which?", "positive_passages": [positive], "negative_passages": [negative]}
    (found,) = loaded(folder, row)
    passages = (*found.positives, *found.negatives)
    assert [found.scores[content_key(p)] for p in passages] == [9, -3] and passages[0].id != passages[1].id
    named = {
        **row,
        "positive_passages": [{"docid": "red", **positive}],
        "negative_passages": [{"docid": "blue", **negative}],
    }
    (found,) = loaded(folder, named, corpus=str(folder / "corpus.jsonl"))
    assert [(p.id, found.scores[content_key(p)]) for p in (*found.positives, *found.negatives)] == [
        ("red", 9),
        ("blue", -3),
    ]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("green.png", r"rows\.jsonl, line 1: the picture green\.png: no such image"),
        ("../red.png", "image outside the corpus folder"),
        ([], "'pos_target' is empty"),
        ([3.5], "'pos_target' is neither a picture's path, nor its bytes, nor an id"),
    ],
)
def test_a_bad_target_is_named_with_its_line(folder: Path, target: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        loaded(folder, {"query": "which?", "pos_target": target})
