"""Pictures as they are kept in a corpus of pages: checked, and PNG where they were drawn."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from hub.pictures import MAX_PIXELS
from sleuth.errors import DataError

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

    Raises DataError for one that is empty, damaged, animated or too large. CMYK and formats other than PNG and JPEG are
    converted; what a name's ending says is not believed.
    """
    try:
        with warnings.catch_warnings(), Pillow.open(io.BytesIO(data)) as opened:
            warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)  # refused here, in our own words
            _check(opened, name, max_pixels)
            opened.load()
            return _kept(opened, data, name)
    except Pillow.DecompressionBombError:
        raise DataError(f"{name} would take too much memory when decoded", "make it smaller") from None
    except (OSError, SyntaxError, ValueError) as error:
        what = str(error).replace("<_io.BytesIO object at ", "").split(" 0x")[0]
        reason = "it is no picture" if isinstance(error, UnidentifiedImageError) else what
        raise DataError(f"{name} cannot be read: {reason}", "mend it") from None


def _check(opened: Any, name: str, max_pixels: int) -> None:
    width, height = opened.size
    if not width or not height:
        raise DataError(f"{name} has {width} x {height} pixels")
    if width * height > max_pixels:
        raise DataError(f"{name} has {width:,} x {height:,} pixels", f"at most {max_pixels:,} are read")
    frames = getattr(opened, "n_frames", 1)
    if frames > 1:
        raise DataError(f"{name} has {frames} frames, and a page is one", "save the frame that counts as a picture")


def _kept(opened: Any, data: bytes, name: str) -> Picture:
    format_, notes = str(opened.format), []
    ending = name.rpartition(".")[2].lower() if "." in name else ""
    said = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "gif": "GIF", "webp": "WEBP", "bmp": "BMP"}.get(ending)
    if said is not None and said != format_:
        notes.append(f"its ending says {said}, and it is {format_}")
    if format_ in _KEPT and opened.mode in _MODES:
        return Picture(data, _KEPT[format_], opened.size, "; ".join(notes))
    notes.append(f"{opened.mode} {format_} became an RGB PNG")
    made = encode(opened.convert("RGB"))
    return Picture(made.data, made.suffix, made.size, "; ".join(notes))
