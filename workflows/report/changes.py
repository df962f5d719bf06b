"""What the page compares: whatever answered questions, their answers, and the paired test of every two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from sleuth.statistics import paired_difference
from workflows.report.sample import Key, Sample

MOST = 40
"""So many systems are compared at most: evaluations of checkpoints in between are left out first."""
_RESAMPLES = 2_000


def pack_changes(samples: Sequence[Sample]) -> dict[str, Any]:
    """``asked``: every question once, [id, text]; ``systems``: their run, name, ``sources`` (places in ``samples``)
    and ``answers`` as [question, EM]; ``pairs``: the paired differences b - a of the systems that share questions.
    """
    asked: dict[Key, int] = {}
    systems = [_system(members, samples, asked) for members in _thinned(_by_system(samples))]
    answers = [dict(system["answers"]) for system in systems]
    pairs = []
    for a, b in combinations(range(len(systems)), 2):
        shared = sorted(answers[a].keys() & answers[b].keys())
        if shared:
            values = ([answers[place][question] for question in shared] for place in (a, b))
            pairs.append({"a": a, "b": b, "n": len(shared), **asdict(paired_difference(*values, resamples=_RESAMPLES))})
    return {"asked": [list(key) for key in asked], "systems": systems, "pairs": pairs}


def _by_system(samples: Sequence[Sample]) -> list[list[int]]:
    """The places of the evaluations of each system, in the order of the samples."""
    found: dict[tuple[int, str], list[int]] = {}
    for place, sample in enumerate(samples):
        if not sample.source.training and sample.answers:
            found.setdefault((sample.run, sample.source.system), []).append(place)
    return list(found.values())


def _thinned(systems: list[list[int]]) -> list[list[int]]:
    """At most `MOST` of them, evenly spread, with the first and the last."""
    if len(systems) <= MOST:
        return systems
    return [systems[round(place * (len(systems) - 1) / (MOST - 1))] for place in range(MOST)]


def _system(members: Sequence[int], samples: Sequence[Sample], asked: dict[Key, int]) -> dict[str, Any]:
    values: dict[int, list[float]] = {}
    for place in members:
        for key, value in samples[place].answers.items():
            values.setdefault(asked.setdefault(key, len(asked)), []).append(value)
    first = samples[members[0]]
    answers = [[question, _number(sum(found) / len(found))] for question, found in values.items()]
    return {"run": first.run, "name": first.source.system, "sources": list(members), "answers": answers}


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else round(value, 4)
