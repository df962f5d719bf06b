"""Seeds that do not depend on what ran before: every random choice is keyed by its place in the program."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a run's seed and the place of use, the same on every machine."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little") >> 1


def drawn(rows: Sequence[T], count: int, seed: int | str) -> list[T]:
    """``count`` rows in their order; fewer are a part of more, since one shuffle serves every count."""
    if count >= len(rows):
        return list(rows)
    places = list(range(len(rows)))
    random.Random(seed).shuffle(places)
    return [rows[place] for place in sorted(places[:count])]
