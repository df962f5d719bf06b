"""A page made small, to be shown beside its title."""

from __future__ import annotations

import io

from PIL import Image as Pillow

from hub.pictures import decode
from sleuth.types import Image

_QUALITY = 55


def small(image: Image, width: int, height: int) -> Pillow.Image:
    """The picture in RGB, at most so large. Raises DataError if it cannot be read."""
    page: Pillow.Image = decode(image)
    page.thumbnail((width, height), Pillow.Resampling.LANCZOS)
    return page


def thumbnail_jpeg(image: Image, width: int = 240, height: int = 320) -> bytes:
    """The picture as JPEG, at most so large: some 10 KB for a page of text. Raises DataError if it cannot be read."""
    file = io.BytesIO()
    small(image, width, height).save(file, "JPEG", quality=_QUALITY, optimize=True)
    return file.getvalue()
