"""Pictures: read from wherever their bytes are, checked and decoded, in the same way wherever one is read."""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import Any

from sleuth.errors import DataError, PictureError, first_line
from sleuth.types import Image

MAX_PIXELS = 40_000_000
"""A larger picture is refused where it would be decoded: it would take 120 MB."""

_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
"""In Pillow's words. Not all that it knows: it gives PostScript to another program, and pictures come from anywhere."""
_DEEP = ("I", "F")
"""Modes of 32 bits, of which nobody says what is white."""
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What puts a picture upright, by its orientation in EXIF."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture in RGB, with the ``format`` and ``mode`` that it was kept in, in Pillow's words."""

    rgb: Any
    format: str
    mode: str


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
    """A picture in RGB. Raises DataError if it is damaged or too large."""
    return decode_bytes(read_image(image), f"the picture {image.name}").rgb


def decode_bytes(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Decoded:
    """The picture in ``data``, upright; what is transparent is white. Of 16 bits a pixel the upper 8 are kept.

    Raises PictureError calling it ``name`` if it is none, damaged, animated, too large or of 32 bits a pixel.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters is refused below, in our own words
            with Pillow.open(io.BytesIO(data), formats=_FORMATS) as opened:
                # of a photograph in the format MPO what follows is its preview
                kind = "JPEG" if opened.format == "MPO" else str(opened.format)
                mode = _check(opened, name, max_pixels, still=opened.format == "MPO")
                opened.load()
                return Decoded(_on_white(_upright(opened)), kind, mode)
    except PictureError:
        raise
    except Pillow.DecompressionBombError:
        what = f"{name} would take too much memory when decoded"
        raise PictureError(what, "make it smaller", "has too many pixels") from None
    except UnidentifiedImageError:
        what = f"{name} cannot be read: it is no picture"
        raise PictureError(what, "give a PNG or JPEG that is whole", "is not a picture") from None
    except Exception as error:  # noqa: BLE001 (decoders of damaged files raise whatever they please)
        what = f"{name} cannot be read: {first_line(error)}"
        raise PictureError(what, "mend it, or leave it out", "is damaged") from None


def _check(opened: Any, name: str, max_pixels: int, *, still: bool) -> str:
    """The mode of a picture that may be loaded. Raises PictureError."""
    width, height = opened.size
    if width * height > max_pixels:
        what = f"{name} has {width:,} x {height:,} pixels"
        raise PictureError(what, f"at most {max_pixels:,} are read", "has too many pixels")
    frames = 1 if still else getattr(opened, "n_frames", 1)
    if frames > 1:
        what = f"{name} has {frames} frames, and a page is one"
        raise PictureError(what, "save the frame that counts as a picture", "has several frames")
    if opened.mode in _DEEP:
        raise PictureError(f"{name} has 32 bits a pixel", "save it with 8 or 16", "has 32 bits a pixel")
    return str(opened.mode)


def _upright(picture: Any) -> Any:
    from PIL import Image as Pillow

    try:
        turn = _TURNS.get(picture.getexif().get(0x0112))
    except Exception:  # noqa: BLE001 (EXIF that is damaged says nothing, and the picture may be whole)
        return picture
    return picture if turn is None else picture.transpose(Pillow.Transpose[turn])


def _on_white(picture: Any) -> Any:
    """In RGB. Where a picture is transparent there may be any colour, mostly black; a page is read on paper."""
    import numpy as np
    from PIL import Image as Pillow

    if picture.mode.startswith("I;16"):
        picture = Pillow.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    paper = Pillow.new("RGBA", picture.size, "white")
    return Pillow.alpha_composite(paper, picture.convert("RGBA")).convert("RGB")
