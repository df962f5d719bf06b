"""Where on a picture each token of an encoded page lies."""

from __future__ import annotations

import math
from typing import Any

from retrieval.encoders.page_processor import PageProcessor

Box = tuple[int, int, int, int]
"""Left, top, right, bottom in pixels of the picture."""


def boxes_of(first: Any, size: tuple[int, int], ids: list[int]) -> list[Box | None]:
    """The part of a picture of ``size`` (width, height) that each token of ``ids`` is of; None for other tokens.

    Known for the page trunk, and for models that make a picture one square grid of patches, as PaliGemma does. Where a
    model cuts pictures into several, no token has a place.
    """
    processor = first.processor
    if isinstance(processor, PageProcessor):
        return _of_trunk(processor, size, ids)
    marked = _image_token(first)
    places = [place for place, token in enumerate(ids) if token == marked]
    side = math.isqrt(len(places))
    found: list[Box | None] = [None] * len(ids)
    if side * side == len(places):
        for number, place in enumerate(places):
            found[place] = _cell(number % side, number // side, size[0] / side, size[1] / side, size)
    return found


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
    right, bottom = min(size[0], round((column + 1) * width)), min(size[1], round((row + 1) * height))
    return round(column * width), round(row * height), right, bottom


def _image_token(first: Any) -> int | None:
    config = first.config
    inner = getattr(config, "vlm_config", config)
    for name in ("image_token_id", "image_token_index"):
        if isinstance(found := getattr(inner, name, None), int):
            return found
    return None
