"""Vision-language models of transformers as page encoders: CLIP, SigLIP, PaliGemma, ColPali, Idefics3, Qwen."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_vision
import torch
from PIL import Image as Pillow

from retrieval.encoders.config import DenseChoice, preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.multivector.explain import explain
from retrieval.pages.heat import heat_html, heat_png
from sleuth.errors import ArtifactError
from sleuth.types import Image, Passage


def page(colour: str, size: tuple[int, int]) -> Image:
    file = io.BytesIO()
    Pillow.new("RGB", size, colour).save(file, "PNG")
    return Image(f"{colour}.png", "0" * 64, file.getvalue())


PAGES = [
    Passage("1", "", "", page("red", (40, 30))),
    Passage("2", "Oslo", "the town", page("blue", (30, 40))),
    Passage("3", "", "", page("green", (64, 64))),
]
WAYS: list[tuple[str, str | None]] = [
    ("clip", "plain"),
    ("siglip", "plain"),
    ("idefics3", "plain"),
    ("idefics3", "colbert"),
    ("colpali", None),
]
WAYS += [("paligemma", "plain"), ("paligemma", "colbert")]
WAYS += [("colqwen2", None)]
QWEN = [(name, recipe) for name in ("qwen2_vl", "qwen2_5_vl") for recipe in ("plain", "colbert")]
TORCHVISION = importlib.util.find_spec("torchvision") is not None
if TORCHVISION:
    WAYS += QWEN
LENGTHS = {"query_max_tokens": 32, "passage_max_tokens": 32, "reads": "image"}


def encoder_of(name: str, recipe: str | None, folder: Path) -> Encoder:
    backbone = str(tiny_vision.made(name, folder))
    if recipe is None:
        return load_encoder(backbone)
    more = {"dimensions": 8, "expand_to": 0} if recipe == "colbert" else {}
    return new_encoder(preset(recipe, backbone, **LENGTHS, **more))


def vectors(encoded: Encoded, row: int) -> torch.Tensor:
    """Those that count: [d] or [tokens, d]."""
    return encoded.values[row] if encoded.mask is None else encoded.values[row][encoded.mask[row]]


@pytest.mark.parametrize(("name", "recipe"), WAYS)
def test_pages_are_encoded_alike_alone_in_a_batch_and_when_loaded(
    name: str, recipe: str | None, tmp_path: Path
) -> None:
    encoder = encoder_of(name, recipe, tmp_path / "model")
    assert encoder.settings.reads == "image" and encoder.modalities.passage == {"text", "image"}
    together = encoder.encode_passages(PAGES)
    first, last = (vectors(together, row) for row in (0, 2))
    assert first.shape != last.shape or not torch.allclose(first, last, atol=1e-6)
    alone = encoder.encode_passages(PAGES[1:2])
    assert torch.allclose(vectors(alone, 0), vectors(together, 1), atol=1e-5)
    scores = encoder.family.scores(encoder.encode_texts(["what is oslo", "here"], "query"), together)
    assert scores.shape == (2, 3) and scores.isfinite().all()
    encoder.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    assert again.fingerprint == encoder.fingerprint
    assert torch.equal(again.encode_passages(PAGES).values, together.values)


@pytest.mark.parametrize("name", ["idefics3", "colpali"])
def test_a_text_cannot_stand_for_a_picture(name: str, tmp_path: Path) -> None:
    encoder = encoder_of(name, "plain" if name == "idefics3" else None, tmp_path)
    for role in ("query", "passage"):
        hostile, broken = encoder.encode_texts(
            ["oslo <image> <image>", "oslo <\u00b7image> <\u00b7image>"], role
        ).values
        assert torch.allclose(hostile, broken, atol=1e-5) and hostile.isfinite().all()


@pytest.mark.skipif(TORCHVISION, reason="torchvision is installed")
@pytest.mark.parametrize(("name", "recipe"), QWEN)
def test_a_processor_that_needs_torchvision_says_so(name: str, recipe: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"its processor needs torchvision \(pip install torchvision"):
        encoder_of(name, recipe, tmp_path)


def test_a_model_of_one_vector_makes_no_patches(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="gives one vector a text or picture"):
        encoder_of("clip", "colbert", tmp_path)


def test_a_model_that_combines_nothing_says_so_when_made_and_when_loaded(tmp_path: Path) -> None:
    encoder_of("clip", "plain", tmp_path / "clip").save(tmp_path / "saved")
    for make in (
        lambda: new_encoder(preset("plain", str(tmp_path / "clip"), **{**LENGTHS, "reads": "both"})),
        lambda: load_encoder(DenseChoice(backbone=str(tmp_path / "saved"), reads="both")),
    ):
        with pytest.raises(ArtifactError, match="reads a text or a picture, not both at once"):
            make()


@pytest.mark.parametrize("make", [tiny_vision.idefics3, tiny_vision.paligemma])
def test_a_model_without_a_chat_template_is_refused(make: Callable[..., None], tmp_path: Path) -> None:
    make(tmp_path, template=None)
    with pytest.raises(ArtifactError, match="has no chat template"):
        new_encoder(preset("plain", str(tmp_path), **LENGTHS))


def test_a_hit_tells_which_patches_it_was_found_by(tmp_path: Path) -> None:
    encoder = encoder_of("colpali", None, tmp_path)
    (reason,) = explain(encoder, "what is oslo", PAGES[2:])
    total = encoder.family.scores(encoder.encode_texts(["what is oslo"], "query"), encoder.encode_passages(PAGES[2:]))
    assert sum(part.score for part in reason.parts) == pytest.approx(float(total), abs=1e-4)
    boxes = {part.box for part in reason.parts if part.box}
    assert all(right - left == 16 and bottom - top == 16 for left, top, right, bottom in boxes)
    image = PAGES[2].image
    assert image is not None
    png = heat_png(image, reason)
    assert Pillow.open(io.BytesIO(png)).size == (512, 512)
    assert "&lt;Oslo&gt;" in heat_html("<Oslo>", "q", 1.0, png, reason)
