"""Pages of many tokens in vision-language models with the usual lengths: a picture is whole, texts are cut."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_vision
import torch
from commands import run
from PIL import Image as Pillow
from sentence_transformers import MultiVectorEncoder, SentenceTransformer

from hub.pictures import decode
from retrieval.encoders.config import EncoderKind, preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.inputs import Seen
from retrieval.encoders.loading import load_encoder, new_encoder, open_trainable_encoder
from sleuth.errors import DataError
from sleuth.types import Image, Passage

USUAL: dict[str, tuple[str, dict[str, Any]]] = {
    "clip": ("clip", {"reads": "image"}),
    "siglip": ("siglip", {"reads": "image"}),
    "DSE": ("smolvlm", {"pooling": "lasttoken", "reads": "image"}),
    "DSE, both": ("smolvlm", {"pooling": "lasttoken", "reads": "both"}),
    "a vector a patch": ("smolvlm", {"kind": "multivector", "reads": "image", "expand_to": 0}),
    "PaliGemma": ("paligemma_of_1024", {"kind": "multivector", "reads": "image", "expand_to": 0}),
    "ColPali": ("colpali_of_1024", {}),
}


def page(number: int, size: tuple[int, int], text: str = "") -> Passage:
    drawn = np.random.default_rng(number).integers(0, 256, (size[1] // 10, size[0] // 10, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(drawn).resize(size).save(file, "PNG")
    return Passage(str(number), "", text, Image(f"{number}.png", f"{number:064}", file.getvalue()))


PAGES = [page(1, (500, 710), "oslo is here"), page(2, (400, 200)), page(3, (200, 200), "the town of bergen")]


def usual(way: str, folder: Path) -> Encoder:
    name, settings = USUAL[way]
    return open_trainable_encoder(EncoderKind.of(backbone=str(tiny_vision.made(name, folder)), **settings))


def of(encoder: Encoder, passages: list[Passage]) -> list[torch.Tensor]:
    found = encoder.encode_passages(passages)
    return [row if found.mask is None else row[found.mask[place]] for place, row in enumerate(found.values)]


@pytest.mark.parametrize("way", list(USUAL))
def test_an_encoder_reads_whole_pages_with_no_length_named(way: str, tmp_path: Path) -> None:
    encoder = usual(way, tmp_path / "model")
    together = of(encoder, PAGES)
    for row, passage in zip(together, PAGES, strict=True):
        (alone,) = of(encoder, [passage])
        assert torch.allclose(alone, row, atol=1e-5)
    encoder.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert (again.fingerprint, again.settings) == (encoder.fingerprint, encoder.settings)
    assert all(map(torch.equal, of(again, PAGES), together))
    plain = (SentenceTransformer if encoder.settings.kind == "dense" else MultiVectorEncoder)(str(tmp_path / "saved"))
    both = encoder.settings.reads == "both"
    for passage, row in zip(PAGES, together, strict=True):
        assert passage.image is not None
        picture = decode(passage.image)
        theirs = plain.encode_document([{"image": picture, "text": passage.text} if both and passage.text else picture])
        assert np.allclose(np.asarray(theirs[0]), row.numpy(), atol=1e-5)


def test_the_lengths_that_nobody_named_are_those_that_the_model_reads(tmp_path: Path) -> None:
    encoder = usual("siglip", tmp_path / "siglip")
    assert (encoder.settings.query_max_tokens, encoder.settings.passage_max_tokens) == (64, 64)
    assert encoder.encode_texts(["oslo " * 300], "passage").values.isfinite().all()


def test_pages_are_indexed_and_searched_with_no_length_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pages").mkdir()
    for passage in PAGES:
        assert passage.image is not None
        decode(passage.image).save(tmp_path / "pages" / passage.image.name)
    run("pages", str(tmp_path / "pages"), "--out", str(tmp_path / "corpus"))
    for kind, way in (("dense", "siglip"), ("multivector", "a vector a patch")):
        name, settings = USUAL[way]
        backbone = tiny_vision.made(name, tmp_path / name)
        named = ", ".join(f"{key}: {value}" for key, value in {"backbone": backbone, **settings}.items())
        index = str(tmp_path / kind)
        made = ("index", str(tmp_path / "corpus"), "--out", index, "--kind", kind, "--encoder", f"{{{named}}}")
        assert run(*made) == 0, capfd.readouterr().err
        assert run("search", index, "what is oslo", "--json") == 0, capfd.readouterr().err


def test_a_text_beside_a_picture_is_cut_and_the_picture_is_not(tmp_path: Path) -> None:
    backbone = str(tiny_vision.made("smolvlm", tmp_path))
    encoder = new_encoder(preset("plain", backbone, reads="both", passage_max_tokens=6))
    assert PAGES[0].image is not None
    seen = [
        Seen(PAGES[0].image, text) for text in ("", "oslo", "the town of oslo and", "the town of oslo and of bergen")
    ]
    lengths = [encoder.features([given], "passage")["input_ids"].shape[1] for given in seen]
    assert lengths[0] > 13 * 64 and lengths[3] - lengths[0] <= 6 < lengths[3] - lengths[0] + 3
    assert lengths[1] < lengths[2]
    one, other = encoder.encode_inputs([Seen(PAGES[0].image, "here " * n) for n in (6, 600)], "passage").values
    assert torch.allclose(one, other, atol=1e-5)


def test_a_picture_of_more_tokens_than_the_model_reads_is_named(tmp_path: Path) -> None:
    encoder = usual("DSE", tmp_path)
    encoder.tower("passage")[0].config.text_config.max_position_embeddings = 500
    with pytest.raises(DataError, match=r"1.png takes \d+ tokens, but the encoder reads at most 500"):
        encoder.encode_passages(PAGES[:1])
