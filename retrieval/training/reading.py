"""Learning to read: which letter each patch of a page shows, from where the letters were drawn."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from retrieval.encoders.encoder import Encoder
from retrieval.encoders.inputs import Seen
from retrieval.encoders.page_processor import SPACE, PageProcessor
from retrieval.encoders.page_trunk import PageTrunk
from retrieval.pages.letters import Lettering, LetterPlaces
from retrieval.training.config import TrainingSettings
from retrieval.training.objective import Scored, Terms
from sleuth.errors import ConfigError
from sleuth.types import Passage

log = logging.getLogger("sleuth.train_retriever")

_AT_ONCE = 64
"""Pages of a batch that are read at most, so that a large batch costs no more memory."""


def reading(settings: TrainingSettings, encoder: Encoder) -> Terms | None:
    """The term ``reading``, a cross-entropy over the letters; None without a section ``reading``.

    Raises ConfigError for an encoder that does not read patches.
    """
    chosen = settings.reading
    if chosen is None:
        return None
    first = next(iter(encoder.tower("passage").children()))
    trunk, processor = getattr(first, "model", None), getattr(first, "processor", None)
    if not isinstance(trunk, PageTrunk) or not isinstance(processor, PageProcessor):
        raise ConfigError("training.reading is for a page trunk from scratch", "leave it out")
    places = LetterPlaces(chosen.letters)

    def terms(scored: Scored) -> Mapping[str, Tensor]:
        pages = _pages(encoder, scored, places)
        if not pages:
            return {"reading": scored.scores.sum() * 0.0}
        features = encoder.features(pages, "passage")
        pixels = features["pixel_values"].to(encoder.device)
        rows, columns = trunk.look.grid(pixels)
        inked = features["attention_mask"][:, : rows * columns].bool().unflatten(1, (rows, columns))
        known = [places.of(page.image.sha256) for page in pages]
        wanted = torch.stack([letter_grid(page, processor, (rows, columns)) for page in known])
        logits = trunk.read(pixels, inked.to(encoder.device))[inked]
        loss = functional.cross_entropy(logits, wanted[inked].to(encoder.device))
        return {"reading": chosen.weight * loss}

    return terms


def check_letters(settings: TrainingSettings, encoder: Encoder, passages: Sequence[Passage]) -> None:
    """Raise ConfigError if a section ``reading`` would teach nothing of ``passages``; warn of pages without letters."""
    if settings.reading is None:
        return
    file = settings.reading.letters
    pages = {given.image.sha256 for given in encoder.inputs_of(passages) if isinstance(given, Seen)}
    if not pages:
        raise ConfigError(
            "training.reading learns from pages, and the encoder reads none in the rows",
            "set encoder.settings.reads to image and train on pages, or leave it out",
        )
    places = LetterPlaces(file)
    known = sum(page in places for page in pages)
    if not known:
        raise ConfigError(
            f"{file} has the letters of none of the {len(pages):,} pages in the rows",
            "give training.reading.letters the file beside their corpus, of the same rendering",
        )
    if known < len(pages):
        log.warning("training.reading: %s has the letters of %d of %d pages in the rows", file, known, len(pages))


def _pages(encoder: Encoder, scored: Scored, places: LetterPlaces) -> list[Seen]:
    """The pages of a batch whose letters are known, each once."""
    seen = [given for given in encoder.inputs_of(scored.batch.passages) if isinstance(given, Seen)]
    known = {page.image.sha256: Seen(page.image) for page in seen if page.image.sha256 in places}
    return list(known.values())[:_AT_ONCE]


def letter_grid(page: Lettering, processor: PageProcessor, grid: tuple[int, int]) -> Tensor:
    """The letter of each patch [rows, columns]: the one whose middle lies nearest to its own; a space where none does.

    A letter is where the processor's scaling of the page puts it.
    """
    letter_id: Callable[[str], int] = processor.tokenizer.convert_tokens_to_ids
    found = torch.full(grid, letter_id(SPACE))
    nearest: dict[tuple[int, int], float] = {}
    pictures = processor.image_processor
    width, height, scale = pictures.patch_width, pictures.patch_height, pictures.scale_of(*page.size)
    for line in page.lines:
        y = line.y * scale
        for letter, place in zip(line.text, line.x, strict=True):
            x = place * scale
            cell = (int(y // height), int(x // width))
            away = abs(x % width - width / 2) + abs(y % height - height / 2)
            shown = 0 <= cell[0] < grid[0] and 0 <= cell[1] < grid[1]
            if shown and not letter.isspace() and away < nearest.get(cell, 1e9):
                nearest[cell] = away
                found[cell] = letter_id(letter)
    return found
