"""Settings of pages: how texts are drawn and how large documents are rendered. No Pillow here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from sleuth.settings import Count, Settings

NotNegative = Annotated[int, Field(ge=0)]


class PageSettings(Settings):
    """How a document becomes pages. Sizes are in pixels."""

    width: Annotated[int, Field(ge=16, le=8_000)] = 512
    height: Annotated[int, Field(ge=16, le=8_000)] = 720
    """A drawn text that needs more goes on to further pages."""
    font: str | None = None
    """A file, such as a .ttf, or the name of an installed font; None: DejaVu Sans Mono, or what Pillow brings."""
    size: Annotated[int, Field(ge=4, le=400)] = 14
    """Of the font."""
    cell: tuple[Count, Count] | None = None
    """Width and height of a cell: letters stand one in each of a grid of such cells. None: as the font spaces them."""
    margin: NotNegative = 16
    jitter: NotNegative = 0
    """Each page's text is moved by up to so much, right and down."""
    seed: int = 0
    """Of the jitter."""
    dpi: Annotated[int, Field(ge=20, le=600)] = 96
    """Of pages of PDFs; their size is the document's own."""
    renderer: Literal["pillow", "chromium"] = "pillow"
    """Of HTML: its text drawn like any text, or what a headless Chromium prints, with ``dpi``."""

    @model_validator(mode="after")
    def _something_fits(self) -> PageSettings:
        across, down = self.room
        needed = self.cell or (self.size, self.size)
        if across < needed[0] or down < needed[1]:
            raise ValueError(
                f"no letter fits on {self.width} x {self.height} pixels with margin {self.margin} and "
                f"jitter {self.jitter}; make the page larger"
            )
        return self

    @model_validator(mode="after")
    def _letters_fit_their_cells(self) -> PageSettings:
        """Most letters are about half as wide as high; what is a little larger than its cell is still read."""
        if self.cell and self.size > min(2 * self.cell[0], self.cell[1]):
            raise ValueError(
                f"letters of {self.size} pixels do not fit cells of {self.cell[0]} x {self.cell[1]}; "
                "make the size smaller or the cells larger"
            )
        return self

    @property
    def room(self) -> tuple[int, int]:
        """Width and height that a text may take."""
        return tuple(side - 2 * self.margin - self.jitter for side in (self.width, self.height))  # type: ignore[return-value]

    @property
    def drawing(self) -> dict[str, Any]:
        """What decides the pixels of a drawn text."""
        return self.model_dump(mode="json", exclude={"dpi"})
