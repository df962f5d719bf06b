"""Settings of a page trunk from scratch: what reads pages on two cores. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sleuth.settings import Count, Settings


class PageScratchSettings(Settings):
    """A network with random weights that reads pages patch by patch and texts letter by letter.

    Its letters are those of ``scratch_corpus``, so of the pages' text layers, and of the queries.
    """

    family: Literal["pages"]
    letters: Annotated[int, Field(ge=8)] = 256
    """At most so many different ones, the most frequent; others are unknown."""
    patch_width: Count = 8
    patch_height: Count = 16
    """Pixels of a patch. A letter of the font in each, or less than one, is what can be read."""
    max_width: Count = 512
    max_height: Count = 768
    """Larger pages are made smaller."""
    hidden_size: Annotated[int, Field(ge=8)] = 128
    layers: Count = 2
    heads: Count = 4
    spelling: Annotated[int, Field(ge=0)] = 2
    """Convolutions along the line before the transformer, of width 5."""
    context: bool = True
    """Each patch is read with its eight neighbours: needed where letters do not keep to the patches."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _sizes_fit(self) -> PageScratchSettings:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of heads {self.heads}")
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of 4, which places are written in")
        if self.max_width < self.patch_width or self.max_height < self.patch_height:
            raise ValueError("a page must hold at least one patch: raise max_width and max_height")
        return self
