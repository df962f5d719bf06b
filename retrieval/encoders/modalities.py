"""What an encoder reads, and whether the passages and queries at hand fit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from retrieval.encoders.config import Reads
from sleuth.errors import ArtifactError, ConfigError
from sleuth.types import Passage

Modality = Literal["text", "image"]


@dataclass(frozen=True, slots=True)
class Modalities:
    """What is read of queries and of passages; a passage fits if it has one of its kinds."""

    query: frozenset[Modality]
    passage: frozenset[Modality]


TEXT = Modalities(frozenset({"text"}), frozenset({"text"}))


def modalities_read(known: Iterable[Any], reads: Reads) -> Modalities:
    """What an encoder reads whose model takes inputs of the ``known`` kinds, as sentence-transformers names them."""
    if reads == "text":
        return TEXT
    kinds: list[Modality] = ["text", "image"]
    taken = {*known}
    able = frozenset(kind for kind in kinds if kind in taken or "message" in taken)
    return Modalities(able, able)


def modalities_of(passage: Passage) -> frozenset[Modality]:
    """A title counts as text."""
    text = bool((passage.title + passage.text).strip())
    kinds: list[Modality] = [*(["text"] if text else []), *(["image"] if passage.image else [])]  # type: ignore[list-item]
    return frozenset(kinds)


def check_passages(passages: Iterable[Passage], reads: Modalities, encoder: str) -> None:
    """Raise ConfigError naming the first passage of which ``encoder`` reads nothing."""
    for passage in passages:
        has = modalities_of(passage)
        if not has & reads.passage:
            raise ConfigError(
                f"{encoder} reads {_words(reads.passage)} of passages, but passage {passage.id} has only {_words(has)}",
                "choose an encoder that reads it, or leave such passages out",
            )


def check_index(index: str, held: Iterable[str], reads: Modalities, encoder: str) -> None:
    """Raise ArtifactError if ``encoder`` reads nothing of some passages, which hold text, image or image+text."""
    for kinds in held:
        if not reads.passage & set(kinds.split("+")):
            raise ArtifactError(
                f"{index} has passages of {kinds} alone, and {encoder} reads {_words(reads.passage)} of passages",
                "open it with the encoder that made it",
            )


def check_queries(reads: Modalities, encoder: str) -> None:
    """Raise ConfigError if ``encoder`` cannot read queries of text."""
    if "text" not in reads.query:
        hint = "ask with pictures: sleuth search INDEX --image FILE" if reads.query else ""
        raise ConfigError(f"{encoder} reads {_words(reads.query)} of queries, but queries are text", hint)


def _words(kinds: frozenset[Modality]) -> str:
    return " or ".join(sorted(kinds, reverse=True)) or "nothing"
