"""Pictures of passages: found beside the corpus, and checked."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from hub.pictures import decode_bytes
from sleuth.errors import DataError, PictureError
from sleuth.types import FilePart, Image


def find_image(name: object, folder: Path) -> Image:
    """The picture called ``name`` in a row of the corpus in ``folder``, decoded once to see that it is whole.

    Raises ValueError with one of a few fixed phrases, so that bad rows can be counted.
    """
    if not isinstance(name, str) or not name.strip():
        raise ValueError("image is not a path")
    try:
        path = (folder / name).resolve()
        there = path.is_file()  # neither a folder nor a pipe, whose reader would wait for ever
    except (OSError, ValueError, RuntimeError):  # a null byte, half a surrogate pair, links in a circle
        raise ValueError("no such image") from None
    if Path(name).is_absolute() or not path.is_relative_to(folder.resolve()):
        raise ValueError("image outside the corpus folder")
    if not there:
        raise ValueError("no such image")
    try:
        data = path.read_bytes()
    except OSError:
        raise ValueError("image cannot be read") from None
    try:
        decode_bytes(data, name)
    except PictureError as error:
        raise ValueError(f"image {error.reason}") from None
    place = FilePart(path, 0, len(data))
    return Image(PurePosixPath(name).as_posix(), hashlib.sha256(data).hexdigest(), place)


def image_of_file(path: Path) -> Image:
    """The picture in a file of the user's. Raises DataError if it cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the picture {path}: {error.strerror or error}") from None
    decode_bytes(data, str(path))
    return Image(path.name, hashlib.sha256(data).hexdigest(), data)
