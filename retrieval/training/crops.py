"""Queries cropped from passages: words in a row, at a random place (Lin et al. 2023, after Izacard et al. 2022).

Unlike a question of the cloze task, a crop stays in its passage, and its labels come from teachers.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sleuth.seeding import derive_seed
from sleuth.types import Passage


@dataclass(frozen=True, slots=True)
class Crop:
    text: str
    passage: Passage


def crop_passages(passages: Iterable[Passage], count: int, words: tuple[int, int], *, seed: int) -> list[Crop]:
    """Crops of ``words`` (shortest, longest) words, one each of ``count`` passages drawn from those long enough.

    In the order of the passages. Fewer where fewer are long enough.
    """
    rng = random.Random(derive_seed(seed, "crops"))
    kept: list[tuple[int, Passage]] = []
    seen = 0
    for passage in passages:
        if len(passage.text.split()) < words[0]:
            continue
        seen += 1
        if len(kept) < count:
            kept.append((seen, passage))
        elif (place := rng.randrange(seen)) < count:  # reservoir sampling: the corpus need not fit in memory
            kept[place] = (seen, passage)
    return [Crop(_crop(passage, words, seed), passage) for _, passage in sorted(kept, key=lambda pair: pair[0])]


def _crop(passage: Passage, words: tuple[int, int], seed: int) -> str:
    """Depends on the passage and the seed alone, not on which others were drawn."""
    rng = random.Random(derive_seed(seed, "crop", passage.id))
    text: Sequence[str] = passage.text.split()
    length = rng.randint(words[0], min(words[1], len(text)))
    start = rng.randint(0, len(text) - length)
    return " ".join(text[start : start + length])
