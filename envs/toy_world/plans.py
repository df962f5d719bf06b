"""Demonstrators who do less well than they could, on purpose.

A lazy demonstrator stops searching too early and answers what it has found so far. A policy that imitates
one knows how to search on, and does so too seldom: what reinforcement can mend.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from sleuth.types import Plan

CHAIN_KINDS = frozenset({"two_hop", "three_hop"})


def lazy(plan: Plan, hops: int) -> Plan:
    """``plan`` ended after ``hops`` searches (at least 1), with the value found last as its answer.

    A plan that has no more searches than that is returned as it is. Every thought of the world's
    plans says what was found and then what is needed; the last one keeps the first of these.
    """
    if hops < 1:
        raise ValueError("a demonstration searches at least once")
    if hops >= len(plan.steps):
        return plan
    found, _, _ = plan.steps[hops].think.partition(". ")
    return replace(plan, steps=plan.steps[:hops], think=f"{found}.", answer=plan.steps[hops - 1].found)


def with_lazy_share(plans: Iterable[Plan], share: float, seed: int) -> list[Plan]:
    """``plans``, a ``share`` of the two- and three-hop ones made lazy at a seeded hop."""
    rng = random.Random(f"{seed}/lazy")
    result = []
    for plan in plans:
        chosen, hops = rng.random() < share, rng.randint(1, max(1, len(plan.steps) - 1))
        result.append(lazy(plan, hops) if chosen and plan.question.kind in CHAIN_KINDS else plan)
    return result
