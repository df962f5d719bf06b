"""Shared by every kind of index: build results, the check of k, and query cleaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from retrieval.corpus import BadRow
from sleuth.errors import ConfigError


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """The result of a build: passages in the index, skipped rows by reason, and the first few of those.

    ``whole``: how many passages of the corpus they are windows of; None where they are whole.
    """

    path: Path
    passages: int
    skipped: Mapping[str, int]
    examples: tuple[BadRow, ...] = ()
    whole: int | None = None


def check_k(k: int, passages: int | None, index: str | Path = "the index") -> int:
    """How many hits to look for: ``k``, or all ``passages`` of a smaller index. Raises ConfigError if below 1."""
    if k < 1:
        raise ConfigError(f"k is {k}, it must be 1 or more to search {index}")
    return k if passages is None else min(k, passages)


def clean_query(query: str) -> str:
    """``query`` stripped, with lone surrogates replaced so that it can be encoded as UTF-8."""
    return query.strip().encode("utf-8", "replace").decode("utf-8")
