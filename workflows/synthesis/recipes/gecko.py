"""A task and a query from a passage, relabelled by the same model over the passage's neighbours (Lee et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from retrieval.passages import passage_text
from sleuth.types import Hit, Passage
from workflows.synthesis.ngrams import same_words
from workflows.synthesis.reading import record
from workflows.synthesis.recipes.config import GeckoSettings
from workflows.synthesis.script import Find, Script
from workflows.synthesis.writing import Outcome, Writing


class Gecko:
    steps: ClassVar[Mapping[str, Sequence[str]]] = {
        "write": ("title?", "passage"),
        "likelihood": ("title?", "passage", "task?"),
        "relevance": ("title?", "passage", "task?", "query"),
    }

    def __init__(self, settings: GeckoSettings) -> None:
        self._settings = settings

    def write(self, writing: Writing) -> Script[list[Outcome]]:
        seed = writing.unit.passage
        assert seed is not None
        made = yield from writing.ask("write", writing.shown(seed), record("task", "query"))
        hits: list[Hit] = yield Find(made["query"], self._settings.neighbours)
        candidates = with_seed([hit.passage for hit in hits], seed, self._settings.neighbours)
        if len(candidates) < 2:
            return [writing.reject(0, "no neighbours", made["query"])]
        likelihoods, relevances = [], []
        for number, passage in enumerate(candidates):
            values = {**writing.shown(passage), "task": made["task"]}
            likelihoods.append((yield writing.weigh("likelihood", values, made["query"], place=f"-{number}")))
            asked = {**values, "query": made["query"]}
            yes = yield writing.weigh("relevance", asked, "yes", place=f"-{number}")
            no = yield writing.weigh("relevance", asked, "no", place=f"-{number}")
            relevances.append(None if yes is None or no is None else yes - no)
        order = fused([likelihoods, relevances], self._settings.rrf_k)
        positive = candidates[order[0]]
        last = self._settings.negative_rank or len(order)
        lower = (candidates[place] for place in (*reversed(order[:last]), *order[last:]))
        negatives = [passage for passage in lower if not (_same(passage, positive) or _same(passage, seed))][:1]
        other = positive.id != seed.id
        seed_rank = 1 + next(rank for rank, place in enumerate(order) if candidates[place].id == seed.id)
        more = {"other_positive": True} if other else {}
        return [
            writing.written(
                0,
                made["query"],
                [positive],
                negatives,
                instruction=made["task"],
                recipe="gecko",
                made={"seed_rank": seed_rank, "neighbours": len(candidates), **more},
            )
        ]


def with_seed(found: Sequence[Passage], seed: Passage, count: int) -> list[Passage]:
    """``count`` different passages, the seed among them; where it was not found, it takes the last place.

    Copies under other ids are one passage, and a copy of the seed is the seed.
    """
    distinct: list[Passage] = []
    for passage in (seed if _same(one, seed) else one for one in found):
        if not any(_same(passage, other) for other in distinct):
            distinct.append(passage)
    return distinct[:count] if seed in distinct[:count] else [*distinct[: count - 1], seed]


def _same(one: Passage, other: Passage) -> bool:
    return one.id == other.id or (one.image == other.image and same_words(passage_text(one), passage_text(other)))


def fused(scores: Sequence[Sequence[float | None]], constant: float) -> list[int]:
    """Places by reciprocal-rank fusion of ``scores``, higher being better; ties in the order given. None is lowest."""
    total = [0.0] * len(scores[0])
    for values in scores:
        known = [-math.inf if value is None else value for value in values]
        order = sorted(range(len(known)), key=lambda place: -known[place])
        for rank, place in enumerate(order, start=1):
            total[place] += 1 / (constant + rank)
    return sorted(range(len(total)), key=lambda place: -total[place])
