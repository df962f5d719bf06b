"""What every kind of index shares: what was built, which k it can serve, what becomes of a query."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from retrieval.corpus import BadRow
from sleuth.errors import ConfigError


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What was built: passages in the index, rows left out by reason, and the first few of those."""

    path: Path
    passages: int
    skipped: Mapping[str, int]
    examples: tuple[BadRow, ...] = ()


def check_k(k: int, passages: int | None, index: str | Path = "the index") -> None:
    """Raise ConfigError when ``k`` hits cannot be had from ``index``, which holds so many passages where it tells."""
    if k < 1:
        raise ConfigError(f"k is {k}, it must be 1 or more")
    if passages is not None and k > passages:
        raise ConfigError(f"k is {k}, but {index} holds only {passages} passages", f"ask for at most {passages}")


def clean_query(query: str) -> str:
    """``query`` without white space around it, as text that UTF-8 can hold: half a surrogate pair is replaced."""
    return query.strip().encode("utf-8", "replace").decode("utf-8")
