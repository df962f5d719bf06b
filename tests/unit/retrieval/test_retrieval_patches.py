"""Where on a picture the tokens of a page lie: on one grid, or nowhere."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import tiny_vision
from PIL import Image as Pillow

from retrieval.encoders.config import preset
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.inputs import Seen
from retrieval.encoders.loading import load_encoder, new_encoder
from retrieval.encoders.page_config import PageScratchSettings
from retrieval.encoders.scratch import make_backbone
from retrieval.multivector.explain import explain
from retrieval.multivector.patches import Box, boxes_of
from retrieval.pages.heat import heat_png
from sleuth.explanations import Contribution, Explanation
from sleuth.types import Image, Passage

SMALL = {"hidden_size": 32, "layers": 1, "heads": 2, "spelling": 1, "letters": 64}


def drawn(picture: Pillow.Image) -> Image:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Image("page.png", "0" * 64, file.getvalue())


def blank(size: tuple[int, int]) -> Image:
    return drawn(Pillow.new("RGB", size, "red"))


def placed(encoder: Encoder, image: Image, size: tuple[int, int]) -> list[Box]:
    first = next(iter(encoder.tower("passage").children()))
    return [box for box in boxes_of(first, size, encoder.features([Seen(image)], "passage")) if box]


@pytest.fixture(params=["colpali", "colqwen2", "pages"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Encoder:
    """Those that make a picture one grid."""
    if request.param == "pages":
        make_backbone(tmp_path / "trunk", ["a town"], PageScratchSettings(family="pages", **SMALL))
        return new_encoder(preset("colbert", str(tmp_path / "trunk"), reads="image", expand_to=0, query_prompt=""))
    return load_encoder(tiny_vision.made(request.param, tmp_path))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (3, 40), (40, 3), (200, 150), (60, 31)])
def test_every_patch_of_any_picture_can_be_drawn(encoder: Encoder, size: tuple[int, int]) -> None:
    boxes = placed(encoder, blank(size), size)
    assert boxes
    for left, top, right, bottom in boxes:
        assert 0 <= left < right <= size[0] and 0 <= top < bottom <= size[1]
    every = Explanation(tuple(Contribution("q", "patch", 1.0, box) for box in boxes))
    png = Pillow.open(io.BytesIO(heat_png(blank(size), every)))
    assert png.width % size[0] == 0 and png.width * size[1] == png.height * size[0]


@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_token_of_qwen_is_of_the_pixels_that_its_patches_are_made_of(corner: tuple[int, int], tmp_path: Path) -> None:
    encoder = load_encoder(tiny_vision.made("colqwen2", tmp_path))
    pixels = np.full((64, 96, 3), 255, np.uint8)
    rows, columns = slice(corner[1] * 48, corner[1] * 48 + 16), slice(corner[0] * 80, corner[0] * 80 + 16)
    plain = encoder.features([Seen(drawn(Pillow.fromarray(pixels)))], "passage")
    pixels[rows, columns] = 0
    features = encoder.features([Seen(drawn(Pillow.fromarray(pixels)))], "passage")
    changed = (features["pixel_values"] - plain["pixel_values"]).abs()[0].sum(-1).unflatten(0, (-1, 4)).sum(-1)
    first = next(iter(encoder.tower("passage").children()))
    boxes = [box for box in boxes_of(first, (96, 64), features) if box]
    assert len(boxes) == len(changed) > 4 and len(set(boxes)) == len(boxes)
    left, top, right, bottom = boxes[int(changed.argmax())]
    assert left < columns.stop and right > columns.start and top < rows.stop and bottom > rows.start


@pytest.mark.parametrize("size", [(400, 200), (500, 710), (200, 200)])
def test_a_model_that_cuts_a_picture_into_tiles_tells_no_places(size: tuple[int, int], tmp_path: Path) -> None:
    backbone = str(tiny_vision.made("smolvlm", tmp_path))
    encoder = new_encoder(preset("colbert", backbone, reads="image", expand_to=0, dimensions=8))
    assert not placed(encoder, blank(size), size)  # 400 by 200 is 9 times 64 tokens, a square number of them
    (reason,) = explain(encoder, "what is oslo", [Passage("1", "", "", blank(size))])
    assert reason.parts and not any(part.box for part in reason.parts)


def test_a_tile_alone_is_one_grid(tmp_path: Path) -> None:
    backbone = str(tiny_vision.made("idefics3", tmp_path))
    encoder = new_encoder(preset("colbert", backbone, reads="image", expand_to=0, dimensions=8))
    assert placed(encoder, blank((32, 32)), (32, 32)) == [
        (0, 0, 16, 16),
        (16, 0, 32, 16),
        (0, 16, 16, 32),
        (16, 16, 32, 32),
    ]
