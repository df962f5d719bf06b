"""Draws texts as pages with Pillow, and tells where each letter stands."""

from __future__ import annotations

import functools
import random
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from retrieval.pages.config import PageSettings
from retrieval.pages.letters import Line
from sleuth.errors import ConfigError
from sleuth.seeding import derive_seed

_USUAL = "DejaVuSansMono.ttf"
_PAPER = 255
_NO_LETTER = "\U0010ffff"
"""No font has it, so that it looks like every letter that a font lacks."""
_UNKNOWN = "\ufffd"
_FROM_THE_RIGHT = frozenset({"R", "AL", "AN", "RLE", "RLO", "RLI", "LRO", "FSI"})
"""Bidirectional classes of letters that stand elsewhere than in their order."""
_JOINING = frozenset("\u200c\u200d") | frozenset(map(chr, range(0x1100, 0x1200)))
"""What makes one shape of its neighbours, beside combining marks: joiners, and parts of Korean syllables."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A page: its ``pixels`` [height, width] in grey, the text that is on it and where its letters are.

    ``lacking``: letters that the font lacks, each once. They look alike, so that in ``lines`` each is U+FFFD.
    ``shaped``: how many lines have letters that join or run from right to left; ``lines`` does not hold for them.
    """

    pixels: Pixels
    text: str
    lines: Sequence[Line]
    lacking: str = ""
    shaped: int = 0


class Drawer:
    """Draws texts as its settings say; the same text with the same name looks the same each time."""

    def __init__(self, settings: PageSettings) -> None:
        """Raises ConfigError if the font is not found."""
        self.settings = settings
        self.font = load_font(settings.font, settings.size)
        ascent, descent = self.font.getmetrics()
        self.step = settings.cell[1] if settings.cell else ascent + descent
        """From one line to the next."""
        self._glyph = functools.lru_cache(maxsize=4096)(self._drawn_letter)
        self._lacks = functools.lru_cache(maxsize=65_536)(self._has_no_glyph)
        self._box = self._shape(_NO_LETTER)

    def pages(self, text: str, name: str = "") -> Iterator[Drawn]:
        """``text`` on as many pages as it needs, at least one; ``name`` decides how it is jittered."""
        lines = list(self._wrapped(text))
        fit = max(1, self.settings.room[1] // self.step)
        for number, start in enumerate(range(0, max(len(lines), 1), fit)):
            yield self._page(lines[start : start + fit], f"{name}/{number}")

    @property
    def font_name(self) -> str:
        return str(self.font.getname()[0])

    @property
    def shapes(self) -> bool:
        """Whether letters are joined and ordered as their script has them: not in cells, nor without Pillow's Raqm."""
        return self.settings.cell is None and self.font.layout_engine == ImageFont.Layout.RAQM

    def can_write(self, text: str) -> bool:
        """Whether the font has any of the letters and digits of ``text``, or there are none."""
        letters = {letter for letter in text if letter.isalnum()}
        return not letters or not all(map(self._lacks, letters))

    def _page(self, lines: Sequence[str], name: str) -> Drawn:
        chosen = self.settings
        moves = random.Random(derive_seed(chosen.seed, "jitter", name))
        left, top = (chosen.margin + moves.randint(0, chosen.jitter) for _ in range(2))
        page = np.full((chosen.height, chosen.width), _PAPER, np.uint8)
        draw = self._draw_cells if chosen.cell else self._draw_line
        placed = [draw(page, line, left, top + row * self.step) for row, line in enumerate(lines)]
        lacking = "".join(filter(self._lacks, dict.fromkeys("".join(lines))))
        boxes = str.maketrans(dict.fromkeys(lacking, _UNKNOWN))
        shown = [replace(line, text=line.text.translate(boxes)) for line in placed if line.text.strip()]
        return Drawn(page, "\n".join(lines), shown, lacking, sum(map(_is_shaped, lines)))

    def _draw_cells(self, page: Pixels, line: str, left: int, top: int) -> Line:
        assert self.settings.cell is not None
        width, height = self.settings.cell
        for column, letter in enumerate(line):
            if not letter.isspace():
                place = page[top : top + height, left + column * width : left + (column + 1) * width]
                np.minimum(place, self._glyph(letter)[: place.shape[0], : place.shape[1]], out=place)
        middles = tuple(left + column * width + width // 2 for column in range(len(line)))
        return Line(line, middles, top + height // 2)

    def _drawn_letter(self, letter: str) -> Pixels:
        """A letter in the middle of its cell, all of them on one base line."""
        assert self.settings.cell is not None
        width, height = self.settings.cell
        cell = Image.new("L", (width, height), _PAPER)
        ascent, descent = self.font.getmetrics()
        across = round((width - self.font.getlength(letter)) / 2)
        down = round((height - ascent - descent) / 2)  # at half a pixel above the edge Pillow cuts more than it must
        ImageDraw.Draw(cell).text((across, down), letter, font=self.font, fill=0)
        return np.asarray(cell)

    def _has_no_glyph(self, letter: str) -> bool:
        return unicodedata.category(letter)[0] not in "CZ" and self._shape(letter) == self._box

    def _shape(self, letter: str) -> bytes:
        size = self.settings.size
        cell = Image.new("L", (4 * size, 4 * size))
        ImageDraw.Draw(cell).text((size, size), letter, font=self.font, fill=255)
        return cell.tobytes()

    def _draw_line(self, page: Pixels, line: str, left: int, top: int) -> Line:
        picture = Image.fromarray(page[top : top + self.step])
        ImageDraw.Draw(picture).text((left, 0), line, font=self.font, fill=0)
        page[top : top + self.step] = np.asarray(picture)
        ends = [self.font.getlength(line[:end]) for end in range(len(line) + 1)]
        middles = tuple(round(left + (ends[n] + ends[n + 1]) / 2) for n in range(len(line)))
        return Line(line, middles, top + self.step // 2)

    def _wrapped(self, text: str) -> Iterator[str]:
        """The lines of ``text``, broken between words where they are too long, and within a word that is."""
        for paragraph in text.splitlines():
            line = ""
            for word in paragraph.split():
                wider = f"{line} {word}" if line else word
                if self._fits(wider):
                    line = wider
                    continue
                if line:
                    yield line
                line = word
                while not self._fits(line):
                    cut = self._longest(line)
                    yield line[:cut]
                    line = line[cut:]
            yield line

    def _longest(self, word: str) -> int:
        """How many letters of a word fit on a line, at least one."""
        return next((end - 1 for end in range(2, len(word) + 1) if not self._fits(word[:end])), len(word))

    def _fits(self, line: str) -> bool:
        if len(line) <= 1:
            return True
        wide = len(line) * self.settings.cell[0] if self.settings.cell else self.font.getlength(line)
        return bool(wide <= self.settings.room[0])


def _is_shaped(line: str) -> bool:
    """Whether letters of ``line`` stand elsewhere, or look otherwise, than each alone after the one before."""
    return not line.isascii() and any(
        letter in _JOINING
        or unicodedata.category(letter)[0] == "M"
        or unicodedata.bidirectional(letter) in _FROM_THE_RIGHT
        for letter in line
    )


def load_font(name: str | None, size: int) -> Any:
    """The font in a file or of that name. Raises ConfigError if there is none."""
    if name is None:
        try:
            return ImageFont.truetype(_USUAL, size)
        except OSError:
            return ImageFont.load_default(size)
    try:
        return ImageFont.truetype(name, size)
    except OSError:
        where = "it cannot be read as a font" if Path(name).is_file() else "there is no such file or installed font"
        raise ConfigError(f"no font '{name}': {where}", "give a .ttf file, or leave font out") from None
