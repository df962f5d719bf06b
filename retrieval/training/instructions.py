"""Queries with an instruction each: it takes the place of the one in the encoder's query prompt.

E5 writes ``Instruct: {task}\\nQuery: {query}`` (Wang et al. 2024), Qwen3-Embedding the same without the last space.
Which of them is told by the encoder's own ``query_prompt``; queries without an instruction have that prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded, join
from retrieval.encoders.retriever import EncoderRetriever
from retrieval.training.rows import TrainingRow
from sleuth.errors import ConfigError
from sleuth.protocols import Retriever
from sleuth.types import Hit

_START, _END = "Instruct: ", "\nQuery:"


def prompt_for(query_prompt: str, instruction: str) -> str:
    """``query_prompt`` with ``instruction`` in it; as it is without one. Raises ConfigError if it has no place for it.

    >>> prompt_for("Instruct: Find passages\\nQuery:", "Find code")
    'Instruct: Find code\\nQuery:'
    """
    if not instruction:
        return query_prompt
    if not has_place(query_prompt):
        raise ConfigError(
            f"rows have instructions, and the encoder's query_prompt {query_prompt!r} has no place for one",
            r'set encoder.settings.query_prompt to "Instruct: ...\nQuery: ", with the instruction of searches',
        )
    return f"{_START}{instruction}{query_prompt[query_prompt.rindex(_END) :]}"


def has_place(query_prompt: str) -> bool:
    """Whether a prompt holds an instruction, which another can replace."""
    return query_prompt.startswith(_START) and _END in query_prompt


def instructed(encoder: Encoder, instruction: str) -> Encoder:
    """``encoder`` with another instruction for queries; it shares the weights."""
    if not instruction:
        return encoder
    own = encoder.settings
    changed = copy.copy(encoder)
    changed.settings = own.model_copy(update={"query_prompt": prompt_for(own.query_prompt, instruction)})
    return changed


def by_instruction(instructions: Sequence[str]) -> dict[str, list[int]]:
    """The places of each instruction, in order of first appearance."""
    found: dict[str, list[int]] = {}
    for place, instruction in enumerate(instructions):
        found.setdefault(instruction, []).append(place)
    return found


def in_order(parts: Sequence[Encoded], places: Sequence[Sequence[int]]) -> Encoded:
    """The texts of ``parts``, each at its place."""
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([place for some in places for place in some]).argsort()
    joined = join(parts)
    return joined[order.to(joined.values.device)]


def search_each(retriever: Retriever, rows: Sequence[TrainingRow], k: int) -> list[list[Hit]]:
    """At most ``k`` hits for each row's query, with its own instruction where the retriever's encoder takes any."""
    encoder = retriever.encoder if isinstance(retriever, EncoderRetriever) else None
    if not isinstance(encoder, Encoder) or not has_place(encoder.settings.query_prompt):
        return retriever.search([row.query for row in rows], k)
    found: list[list[Hit]] = [[] for _ in rows]
    for instruction, places in by_instruction([row.instruction for row in rows]).items():
        asked: Any = copy.copy(retriever)
        asked.encoder = instructed(encoder, instruction)
        for place, hits in zip(places, asked.search([rows[place].query for place in places], k), strict=True):
            found[place] = hits
    return found


def encode_queries(encoder: Encoder, rows: Sequence[TrainingRow], batch_size: int = 32) -> Encoded:
    """The rows' queries, each with its own instruction, in order."""
    groups = by_instruction([row.instruction for row in rows])
    parts = [
        instructed(encoder, instruction).encode_texts([rows[place].query for place in places], "query", batch_size)
        for instruction, places in groups.items()
    ]
    return in_order(parts, list(groups.values()))
