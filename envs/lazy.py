"""Deliberately imperfect demonstrations.

A lazy demonstrator stops searching too early and answers with what it has found so far. A policy that imitates
it knows how to continue searching but rarely does, which reinforcement learning can fix.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol, Self, TypeVar

from sleuth.demonstrator import Demonstrator
from sleuth.types import Question


class MayBeLazy(Demonstrator, Protocol):
    """A demonstrator with a number of things to find, who can be told to stop once he has found the first ``hops``."""

    @property
    def hops(self) -> int: ...

    def lazily(self, hops: int) -> Self: ...


D = TypeVar("D", bound=MayBeLazy)


def with_lazy_share(
    demonstrators: Iterable[D], share: float, seed: int, kinds: Collection[str] | None = None
) -> list[D]:
    """``demonstrators``, with a fraction ``share`` of those with several steps made lazy at a seeded one.

    ``kinds``: only those for questions of these kinds; None: of all.
    """
    rng = random.Random(f"{seed}/lazy")
    result = []
    for one in demonstrators:
        chosen, hops = rng.random() < share, rng.randint(1, max(1, one.hops - 1))
        wanted = kinds is None or one.question.kind in kinds
        result.append(one.lazily(hops) if chosen and wanted and one.hops > 1 else one)
    return result


def lazy_counts(before: Sequence[MayBeLazy], after: Sequence[MayBeLazy]) -> Mapping[str, tuple[int, int]]:
    """How many demonstrators of each kind of question are lazy, of how many."""
    total = Counter(kind_of(one.question) for one in before)
    made = Counter(kind_of(a.question) for a, b in zip(before, after, strict=True) if a != b)
    return {kind: (made[kind], total[kind]) for kind in sorted(total)}


def kind_of(question: Question) -> str:
    """Data set and kind of a question, as counts name them."""
    return "/".join(part for part in (question.pack, question.kind) if part) or "any"
