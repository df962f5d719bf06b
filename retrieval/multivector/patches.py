"""Where on a picture each token of an encoded page lies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from retrieval.encoders.page_processor import PageProcessor

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the picture."""


def boxes_of(first: Any, size: tuple[int, int], features: Mapping[str, Any]) -> list[Box | None]:
    """The part of the one picture in ``features``, of ``size`` (width, height), that each token is of; or None.

    Known for the page trunk, and for models that make the whole picture one grid of patches, as PaliGemma and Qwen do.
    Where a model cuts pictures into several, leaves their edges out or pads them, no token has a place.
    """
    processor, ids = first.processor, features["input_ids"][0].tolist()
    if isinstance(processor, PageProcessor):
        return _of_trunk(processor, size, ids)
    marked = _image_token(first)
    places = [place for place, token in enumerate(ids) if token == marked]
    found: list[Box | None] = [None] * len(ids)
    columns, rows = _grid(processor, features, len(places))
    if places and columns * rows == len(places) == places[-1] - places[0] + 1:
        for number, place in enumerate(places):
            found[place] = _cell(number % columns, number // columns, size[0] / columns, size[1] / rows, size)
    return found


def _grid(processor: Any, features: Mapping[str, Any], tokens: int) -> tuple[int, int]:
    """Columns and rows of the grid of ``tokens`` that a picture is; 0 where it is in pieces, cropped or padded."""
    pictures = processor.image_processor
    if (grid := features.get("image_grid_thw")) is not None:
        merged = pictures.merge_size
        return int(grid[0, 2]) // merged, int(grid[0, 1]) // merged
    shape = getattr(features.get("pixel_values"), "shape", ())
    mask = features.get("pixel_attention_mask")
    padded = getattr(pictures, "do_pad", False) and (mask is None or not bool(mask.all()))
    whole = not padded and not getattr(pictures, "do_center_crop", False)
    side = math.isqrt(tokens) if whole and len(shape) >= 4 and math.prod(shape[:-3]) == 1 else 0
    return side, side


def _of_trunk(processor: PageProcessor, size: tuple[int, int], ids: list[int]) -> list[Box | None]:
    pages = processor.image_processor
    scale = pages.scale_of(*size)
    width, height = pages.patch_width / scale, pages.patch_height / scale
    columns = math.ceil(max(1, round(size[0] * scale)) / pages.patch_width)
    rows = math.ceil(max(1, round(size[1] * scale)) / pages.patch_height)
    boxes: list[Box | None] = [
        _cell(column, row, width, height, size) for row in range(rows) for column in range(columns)
    ]
    return (boxes + [None] * len(ids))[: len(ids)]


def _cell(column: int, row: int, width: float, height: float, size: tuple[int, int]) -> Box:
    """A pixel at least, also of a picture that has fewer pixels than cells."""
    left, top = min(size[0] - 1, round(column * width)), min(size[1] - 1, round(row * height))
    right, bottom = min(size[0], round((column + 1) * width)), min(size[1], round((row + 1) * height))
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _image_token(first: Any) -> int | None:
    config = first.config
    inner = getattr(config, "vlm_config", config)
    for name in ("image_token_id", "image_token_index"):
        if isinstance(found := getattr(inner, name, None), int):
            return found
    return None
