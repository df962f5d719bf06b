"""Pictures as they are kept in a corpus of pages: checked, and PNG where they were drawn."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from hub.pictures import MAX_PIXELS, decode_bytes

_KEPT = {"PNG": ".png", "JPEG": ".jpg"}
"""Formats that are kept as they are; others become PNG."""
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded picture. ``note``: what was changed, in a few words; empty if nothing was."""

    data: bytes
    suffix: str
    size: tuple[int, int]
    note: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def encode(pixels: NDArray[np.uint8] | Any) -> Picture:
    """Grey pixels [height, width], or a Pillow image, as PNG."""
    picture = Pillow.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Picture(file.getvalue(), ".png", picture.size)


def read_picture(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """The picture in ``data``, decoded once to see that it is whole.

    CMYK, 16 bits and formats other than PNG and JPEG are converted; what a name's ending says is not believed. Errors
    are those of `decode_bytes`.
    """
    decoded, notes = decode_bytes(data, name, max_pixels), []
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    said = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP"}.get(ending)
    if said is not None and said != decoded.format:
        notes.append(f"its ending says {said}, and it is {decoded.format}")
    if decoded.format in _KEPT and decoded.mode in _MODES:
        return Picture(data, _KEPT[decoded.format], decoded.rgb.size, "; ".join(notes))
    notes.append(f"{decoded.mode} {decoded.format} became an RGB PNG")
    return replace(encode(decoded.rgb), note="; ".join(notes))
