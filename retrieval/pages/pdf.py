"""Pages of PDFs by pypdfium2: picture, text layer and the places of letters."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hub.pictures import MAX_PIXELS
from retrieval.pages.letters import Lettering, Line
from retrieval.pages.pictures import Picture, encode
from sleuth.errors import DataError

_POINTS = 72
"""Points per inch, in which PDFs measure."""


def open_pdf(file: Path) -> Any:
    """The document in ``file``. Raises DataError if it is damaged or needs a password."""
    import pypdfium2

    try:
        return pypdfium2.PdfDocument(file)
    except (pypdfium2.PdfiumError, OSError) as error:
        if "assword" in str(error):
            raise DataError(f"{file} needs a password", "save a copy without one") from None
        raise DataError(f"{file} is no PDF that can be read: {error}", "mend it") from None


def read_page(document: Any, number: int, dpi: int) -> tuple[Picture, str, Lettering | None]:
    """The page ``number``, from 0, and where its letters are, unless it is rotated or has no text layer.

    Raises DataError if it is damaged, or too large at ``dpi``.
    """
    import pypdfium2

    scale = dpi / _POINTS
    try:
        page = document[number]
        width, height = page.get_size()
        if math.ceil(width * scale) * math.ceil(height * scale) > MAX_PIXELS:
            raise DataError(f"page {number + 1} has {width / 72:.0f} x {height / 72:.0f} inches", "lower the dpi")
        picture = encode(page.render(scale=scale).to_pil())
        layer = page.get_textpage()
        text = layer.get_text_range().replace("\r\n", "\n").replace("\ufffe", "-").replace("\x00", "").strip()
        left, bottom, *_ = page.get_bbox()
        lines = _lines(layer, left, bottom, height, scale) if page.get_rotation() == 0 else []
        page.close()
    except pypdfium2.PdfiumError as error:
        raise DataError(f"page {number + 1} cannot be read: {error}", "mend it") from None
    return picture, text, Lettering(picture.size, tuple(lines)) if lines else None


def _lines(layer: Any, at_left: float, at_bottom: float, height: float, scale: float) -> list[Line]:
    """Letters with their middles in pixels; consecutive ones at the same height are a line.

    What is shown begins ``at_left`` and ``at_bottom``, in points, and is ``height`` points high.
    """
    found: list[Line] = []
    for place in range(layer.count_chars()):
        letter = layer.get_text_range(place, 1)
        if len(letter) != 1 or letter.isspace() or letter in "\ufffe\x00":
            continue
        left, bottom, right, top = layer.get_charbox(place, loose=True)
        x = round(((left + right) / 2 - at_left) * scale)
        y = round((height - ((top + bottom) / 2 - at_bottom)) * scale)
        if found and abs(found[-1].y - y) <= 1:
            found[-1] = Line(found[-1].text + letter, (*found[-1].x, x), found[-1].y)
        else:
            found.append(Line(letter, (x,), y))
    return found
