"""Deliberately imperfect demonstrations.

A lazy demonstrator stops searching too early and answers with what it has found so far. A policy that imitates
it knows how to continue searching but rarely does, which reinforcement learning can fix.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import replace

from sleuth.types import Plan

CHAIN_KINDS = frozenset({"two_hop", "three_hop"})


def lazy(plan: Plan, hops: int) -> Plan:
    """``plan`` ended after ``hops`` searches (at least 1), with the value found last as its answer.

    A plan with no more searches than that is returned unchanged. Every thought in the world's plans says what
    was found and then what is needed; the last thought keeps only the former.
    """
    if hops < 1:
        raise ValueError("a demonstration needs at least one search")
    if hops >= len(plan.steps):
        return plan
    found, _, _ = plan.steps[hops].think.partition(". ")
    return replace(plan, steps=plan.steps[:hops], think=f"{found}.", answer=plan.steps[hops - 1].found)


def with_lazy_share(plans: Iterable[Plan], share: float, seed: int) -> list[Plan]:
    """``plans``, with a fraction ``share`` of the two- and three-hop ones made lazy at a seeded hop."""
    rng = random.Random(f"{seed}/lazy")
    result = []
    for plan in plans:
        chosen, hops = rng.random() < share, rng.randint(1, max(1, len(plan.steps) - 1))
        result.append(lazy(plan, hops) if chosen and plan.question.kind in CHAIN_KINDS else plan)
    return result
