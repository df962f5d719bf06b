"""Damaged pictures of a corpus and of queries: what is read is the same wherever a picture is met."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from cli.main import main
from hub.pictures import decode
from retrieval.corpus import BadRow, read_rows
from retrieval.dense.retriever import build_dense
from retrieval.encoders.loading import open_encoder
from retrieval.encoders.modalities import Modalities
from retrieval.images import image_of_file
from retrieval.pages.write import write_pages
from sleuth.errors import DataError
from sleuth.types import Passage


def saved(picture: Pillow.Image, kind: str = "PNG", **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def noise() -> Pillow.Image:
    return Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8))


BAD = {
    "torn.jpg": (saved(noise(), "JPEG")[:-300], "image is damaged"),
    "large.png": (saved(Pillow.new("1", (8_000, 8_000))), "image has too many pixels"),
    "moving.gif": (saved(noise(), "GIF", save_all=True, append_images=[Pillow.new("RGB", (20, 30))]), "several frames"),
    "deep.tif": (saved(Pillow.new("F", (4, 4)), "TIFF"), "image has 32 bits a pixel"),
    "words.png": (b"hello", "image is not a picture"),
}
GOOD = {
    "whole.png": saved(noise()),
    "endless.png": saved(noise())[:-12],  # all pixels are there, and the mark of the end is not
}


class Darkness:
    dimension = 1
    modalities = Modalities(query=frozenset({"text"}), passage=frozenset({"image"}))

    def encode_queries(self, queries: Sequence[str]) -> list[list[float]]:
        return [[1.0] for _ in queries]

    def encode_passages(self, passages: Sequence[Passage]) -> list[list[float]]:
        return [[float(np.asarray(decode(p.image)).mean())] for p in passages if p.image is not None]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name, data in {**GOOD, **{name: data for name, (data, _) in BAD.items()}}.items():
        (folder / name).write_bytes(data)
    rows = [{"_id": name, "text": "", "image": name} for name in (*GOOD, *BAD)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_pages_and_corpora_agree_on_what_a_picture_is(corpus: Path, tmp_path: Path) -> None:
    bad = {row.line: row.reason for row in read_rows(corpus) if isinstance(row, BadRow)}
    first = len(GOOD) + 1
    assert all(reason in bad[first + place] for place, (_, reason) in enumerate(BAD.values())) and len(bad) == len(BAD)
    (corpus / "corpus.jsonl").unlink()
    report = write_pages(corpus, tmp_path / "pages", skip_damaged=True)
    assert report.damaged == len(BAD) and report.pages + report.duplicates == len(GOOD)
    assert not [row for row in read_rows(tmp_path / "pages") if isinstance(row, BadRow)]


def test_bad_pictures_are_left_out_of_an_index_before_any_is_encoded(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    encoder = open_encoder("test_retrieval_damaged_pictures:Darkness")
    with pytest.raises(DataError, match=r"corpus\.jsonl:3: image is damaged"):
        build_dense(corpus, tmp_path / "index", encoder)
    assert build_dense(corpus, tmp_path / "index", encoder, skip_bad_rows=True).passages == len(GOOD)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("large.png", r"large\.png has 8,000 x 8,000 pixels \(at most 40,000,000 are read\)"),
        ("moving.gif", r"moving\.gif has 2 frames"),
        ("torn.jpg", r"torn\.jpg cannot be read: .*truncated"),
        ("words.png", r"words\.png cannot be read: it is no picture"),
    ],
)
def test_a_bad_picture_that_asks_is_named_with_what_is_wrong(
    corpus: Path, name: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=said):
        image_of_file(corpus / name)
    with pytest.raises(SystemExit):
        main(["search", "an-index", "--image", str(corpus / name)])
    assert name in capfd.readouterr().err
