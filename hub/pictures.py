"""Pictures of passages: read from wherever their bytes are, and decoded."""

from __future__ import annotations

import hashlib
import io
import warnings
from typing import Any

from sleuth.errors import DataError
from sleuth.types import Image

MAX_PIXELS = 40_000_000
"""A larger picture is refused where it would be decoded: it would take 120 MB."""


def read_image(image: Image) -> bytes:
    """The encoded picture (PNG, JPEG, ...). Raises DataError if its bytes are gone or changed."""
    if isinstance(image.content, bytes):
        return image.content
    if image.content is None:
        raise DataError(f"of the picture {image.name} only the name is known", "read it from the index or the corpus")
    part = image.content
    try:
        with part.file.open("rb") as file:
            file.seek(part.start)
            data = file.read(part.size)
    except OSError as error:
        raise DataError(f"cannot read the picture {image.name} in {part.file}: {error.strerror or error}") from None
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise DataError(f"the picture {image.name} in {part.file} has changed", "rebuild the index")
    return data


def decode(image: Image) -> Any:
    """The first frame of a picture in RGB. Raises DataError if it is damaged or too large."""
    from PIL import Image as Pillow

    data = read_image(image)
    try:
        with warnings.catch_warnings(), Pillow.open(io.BytesIO(data)) as opened:
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)  # refused below, in our own words
            if opened.width * opened.height > MAX_PIXELS:
                raise DataError(
                    f"the picture {image.name} has {opened.width:,} x {opened.height:,} pixels",
                    f"at most {MAX_PIXELS:,} are decoded: make it smaller",
                )
            return opened.convert("RGB")
    except (OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        raise DataError(f"the picture {image.name} cannot be decoded: {error}", "leave it out, or mend it") from None
