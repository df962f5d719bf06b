"""Queries with an instruction each: it takes the place of the one in the encoder's query prompt.

E5 writes ``Instruct: {task}\\nQuery: {query}`` (Wang et al. 2024), Qwen3-Embedding the same without the last space.
Which of them is told by the encoder's own ``query_prompt``; queries without an instruction have that prompt.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch

from retrieval.combine.hybrid import HybridRetriever
from retrieval.combine.rerank import RerankRetriever
from retrieval.encoders.encoder import Encoder
from retrieval.encoders.family import Encoded, PassageEncoder, join
from retrieval.encoders.retriever import EncoderRetriever
from retrieval.instructed import by_instruction
from retrieval.rerankers.scorer import Pair, PairScorer, score_each, takes_instructions
from retrieval.resilient import ResilientRetriever
from retrieval.training.row import TrainingRow
from sleuth.artifacts import fingerprint_of
from sleuth.errors import ConfigError
from sleuth.protocols import Retriever
from sleuth.types import Hit

log = logging.getLogger("sleuth.train_retriever")

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


def check_instructions(rows: Iterable[TrainingRow], encoder: Encoder) -> None:
    """Raise ConfigError where ``rows`` have instructions and the encoder's query prompt has no place for one."""
    for instruction in {row.instruction for row in rows}:
        prompt_for(encoder.settings.query_prompt, instruction)


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


def in_order(parts: Sequence[Encoded], places: Sequence[Sequence[int]]) -> Encoded:
    """The texts of ``parts``, each at its place."""
    if len(parts) == 1:
        return parts[0]
    order = torch.tensor([place for some in places for place in some]).argsort()
    joined = join(parts)
    return joined[order.to(joined.values.device)]


def search_each(retriever: Retriever, rows: Sequence[TrainingRow], k: int) -> list[list[Hit]]:
    """At most ``k`` hits for each row's query, with its own instruction where a model of the retriever reads any."""
    if not reads_instructions(retriever):
        return retriever.search([row.query for row in rows], k)
    found: list[list[Hit]] = [[] for _ in rows]
    for instruction, places in by_instruction([row.instruction for row in rows]).items():
        asked = told(retriever, instruction)
        for place, hits in zip(places, asked.search([rows[place].query for place in places], k), strict=True):
            found[place] = hits
    return found


def reads_instructions(retriever: Retriever) -> bool:
    """Whether a model of ``retriever``, or of what it is made of, may be told what a query asks for."""
    match retriever:
        case ResilientRetriever():
            return reads_instructions(retriever.inner)
        case HybridRetriever():
            return any(map(reads_instructions, retriever.parts))
        case RerankRetriever():
            return takes_instructions(retriever.scorer) or reads_instructions(retriever.inner)
        case EncoderRetriever():
            return reads_any(retriever.encoder)
    return False


def reads_any(encoder: PassageEncoder) -> TypeGuard[Encoder]:
    return isinstance(encoder, Encoder) and has_place(encoder.settings.query_prompt)


def told(retriever: Retriever, instruction: str) -> Retriever:
    """``retriever`` with ``instruction`` for all its models that read any; it shares their weights."""
    if not instruction or not reads_instructions(retriever):
        return retriever
    changed: Any = copy.copy(retriever)
    match retriever:
        case ResilientRetriever():
            changed.inner = told(retriever.inner, instruction)
        case HybridRetriever():
            changed.parts = tuple(told(part, instruction) for part in retriever.parts)
        case RerankRetriever():
            changed.inner, changed.scorer = told(retriever.inner, instruction), _Told(retriever.scorer, instruction)
        case EncoderRetriever(encoder=Encoder() as encoder):
            changed.encoder = instructed(encoder, instruction)
    found: Retriever = changed
    return found


def say_unread(rows: Sequence[TrainingRow], retriever: Retriever, name: str) -> None:
    """Tell that the instructions of ``rows`` are not read, where they are not."""
    count = sum(bool(row.instruction) for row in rows)
    if count and not reads_instructions(retriever):
        log.info("%s reads no instructions: those of %d rows do not count there", name, count)


@dataclass(frozen=True, slots=True)
class _Told:
    """A scorer with an instruction for every pair."""

    scorer: PairScorer
    instruction: str

    @property
    def fingerprint(self) -> str:
        return fingerprint_of([self.scorer.fingerprint, self.instruction])

    def score(self, pairs: Sequence[Pair]) -> list[float]:
        return score_each(self.scorer, pairs, [self.instruction] * len(pairs))


def encode_queries(encoder: PassageEncoder, rows: Sequence[TrainingRow], batch_size: int = 32) -> Encoded:
    """The rows' queries in order, each with its own instruction where the encoder reads any."""
    if not reads_any(encoder):
        return encoder.encode_texts([row.query for row in rows], "query", batch_size)
    groups = by_instruction([row.instruction for row in rows])
    parts = [
        instructed(encoder, instruction).encode_texts([rows[place].query for place in places], "query", batch_size)
        for instruction, places in groups.items()
    ]
    return in_order(parts, list(groups.values()))
