"""Pictures as they are decoded, whichever way they were kept, and what is said of those that are not read."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from hub.pictures import decode, decode_bytes
from sleuth.errors import DataError, PictureError
from sleuth.types import Image


def saved(picture: Pillow.Image, kind: str, **how: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **how)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_bytes(data, "a page").rgb)


def noise(mode: str) -> Pillow.Image:
    grain = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    return Pillow.fromarray(grain).convert(mode)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("PNG", mode) for mode in ("1", "L", "P", "RGB", "RGBA", "LA")),
        *(("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        *(("TIFF", mode) for mode in ("1", "L", "P", "RGB", "CMYK")),
        *(("GIF", "P"), ("WEBP", "RGB"), ("BMP", "RGB")),
    ],
)
def test_an_opaque_picture_is_what_pillow_makes_of_it(kind: str, mode: str) -> None:
    data = saved(noise(mode), kind)
    assert np.array_equal(pixels(data), np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB")))


def on_nothing(mode: str) -> Pillow.Image:
    """A black square on what is transparent, and black beneath."""
    alpha = Pillow.new("L", (40, 60), 0)
    alpha.paste(255, (10, 20, 20, 30))
    picture = Pillow.new("LA" if mode == "LA" else "RGBA", (40, 60), 0)
    picture.putalpha(alpha)
    return picture


def with_palette() -> Pillow.Image:
    picture = Pillow.new("P", (40, 60), 0)
    picture.putpalette([0, 0, 0] * 256)
    picture.paste(1, (10, 20, 20, 30))
    return picture


@pytest.mark.parametrize(
    "data",
    [
        saved(on_nothing("RGBA"), "PNG"),
        saved(on_nothing("LA"), "PNG"),
        saved(on_nothing("RGBA"), "WEBP", lossless=True),
        saved(with_palette(), "PNG", transparency=0),
        saved(with_palette(), "GIF", transparency=0),
    ],
    ids=["RGBA", "LA", "WebP", "palette", "GIF"],
)
def test_text_on_a_transparent_page_is_black_on_white(data: bytes) -> None:
    expected = np.full((60, 40, 3), 255)
    expected[20:30, 10:20] = 0
    assert np.array_equal(pixels(data), expected)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_page_of_16_bits_is_scaled(kind: str) -> None:
    levels = np.full((60, 40), 60_000, np.uint16)
    levels[20:30, 10:20] = 5_000
    found = pixels(saved(Pillow.fromarray(levels), kind))
    assert (found[0, 0, 0], found[25, 15, 0]) == (60_000 >> 8, 5_000 >> 8)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_photograph_is_upright_as_its_exif_says(turn: int) -> None:
    upright = Pillow.new("L", (48, 32), 255)
    upright.paste(0, (0, 0, 16, 8))  # in the left upper corner
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what undoes the turn, in Pillow's numbers
    stored = upright if turn == 1 else upright.transpose(back[turn])
    exif = Pillow.Exif()
    exif[0x0112] = turn
    for kind, how in (("JPEG", {"quality": 95}), ("PNG", {}), ("WEBP", {"lossless": True})):
        found = pixels(saved(stored, kind, exif=exif, **how))
        assert found.shape == (32, 48, 3) and found[4, 8, 0] < 20 and found[28, 40, 0] > 235


def test_exif_that_is_damaged_says_nothing() -> None:
    data = saved(Pillow.new("RGB", (8, 6), "red"), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert pixels(data).shape == (6, 8, 3)


def test_of_a_photograph_with_previews_the_first_picture_is_read() -> None:
    first, preview = Pillow.new("RGB", (8, 6), "red"), Pillow.new("RGB", (4, 3), "blue")
    decoded = decode_bytes(saved(first, "MPO", save_all=True, append_images=[preview]), "photo.jpg")
    assert decoded.format == "JPEG" and decoded.rgb.size == (8, 6)


def png(width: int, height: int, content: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(content)), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def without_a_width() -> bytes:
    """A TIFF whose second frame lacks the tag of its width, at which Pillow raises TypeError."""
    data = saved(noise("L"), "TIFF", save_all=True, append_images=[noise("L")])
    tag = struct.pack("<HH", 256, 4)
    place = data.rindex(tag)
    return data[:place] + struct.pack("<HH", 254, 4) + data[place + len(tag) :]


def without_an_item() -> bytes:
    """An AVIF whose decoder raises RuntimeError."""
    return saved(noise("RGB"), "AVIF").replace(b"av01", b"av00")


@pytest.mark.parametrize(
    ("data", "said", "reason"),
    [
        (b"", "it is no picture", "is not a picture"),
        (png(0, 0), "it is no picture", "is not a picture"),
        (saved(noise("RGB"), "EPS"), "it is no picture", "is not a picture"),
        (saved(noise("RGB"), "DDS"), "it is no picture", "is not a picture"),
        (without_a_width(), "cannot be read", "is damaged"),
        (saved(noise("RGB"), "JPEG")[:-300], "truncated", "is damaged"),
        (saved(noise("RGB"), "PNG")[:400], "cannot be read", "is damaged"),
        (without_an_item(), "cannot be read", "is damaged"),
        (png(8_000, 8_000), "8,000 x 8,000 pixels", "has too many pixels"),
        (png(50_000, 50_000), "too much memory", "has too many pixels"),
        (saved(noise("RGB"), "PNG", save_all=True, append_images=[noise("L").convert("RGB")]), "2 frames", "frames"),
        (saved(Pillow.new("F", (4, 4), 0.5), "TIFF"), "32 bits a pixel", "32 bits"),
        (saved(Pillow.new("I", (4, 4), 70_000), "TIFF"), "32 bits a pixel", "32 bits"),
    ],
)
def test_what_is_not_read_is_said_in_one_line(data: bytes, said: str, reason: str) -> None:
    with pytest.raises(PictureError) as stop:
        decode_bytes(data, "page 7")
    message = str(stop.value)
    assert "page 7" in message and said in message and reason in stop.value.reason and "\n" not in message
    with pytest.raises(DataError, match=r"the picture a\.png"):
        decode(Image("a.png", "0" * 64, data))
