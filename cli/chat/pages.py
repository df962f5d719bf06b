"""A page in a terminal: half blocks, whose upper and lower halves are a pixel each."""

from __future__ import annotations

from pathlib import Path

from rich.color import Color
from rich.style import Style
from rich.text import Text

from sleuth.errors import ConfigError, DataError
from sleuth.types import Image

_HALF = "▀"


def drawn(image: Image, columns: int, rows: int) -> Text:
    """The picture, at most so large, a letter for two pixels one above the other. Raises DataError if it is damaged."""
    import numpy as np

    from retrieval.pages.thumbnail import small

    pixels = np.asarray(small(image, columns, 2 * rows))  # [height, width, 3]
    height, width, _ = pixels.shape
    lines = []
    for top in range(0, height, 2):
        line = Text()
        for column in range(width):
            upper = Color.from_rgb(*pixels[top, column].tolist())
            lower = Color.from_rgb(*pixels[top + 1, column].tolist()) if top + 1 < height else None
            line.append(_HALF, Style(color=upper, bgcolor=lower))
        lines.append(line)
    return Text("\n").join(lines)


def save_page(image: Image | None, file: str) -> None:
    """Write the picture as it is. Raises ConfigError for a passage that is none or a file that is there."""
    from hub.pictures import read_image

    if image is None:
        raise ConfigError("this passage has no picture", "/passage N shows its text")
    try:
        with Path(file).expanduser().open("xb") as out:
            out.write(read_image(image))
    except FileExistsError:
        raise ConfigError(f"{file} exists", "name another file") from None
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror or error}") from None


def size_of_page(image: Image) -> tuple[int, int]:
    """Width and height in pixels. Raises DataError if it is damaged."""
    from hub.pictures import decode

    size: tuple[int, int] = decode(image).size
    return size
