"""Confidence of a mean over questions, and of the difference between two.

Shares, where every value is 0 or 1: Wilson's interval (1927); differences by McNemar's exact test and Newcombe's
interval (Statistics in Medicine 17, 1998, 2635-2650, method 10). A bootstrap of 24 wrong answers has no width.
All other means: seeded bootstrap over questions with percentile intervals (Efron & Tibshirani, An Introduction to the
Bootstrap, 1993, chapters 13 and 16).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["wilson", "bootstrap"]
PairedMethod = Literal["mcnemar", "paired_bootstrap"]

_CELLS = 4_000_000
"""Draws held in memory at once: 32 MB of indices."""
_WORDS = {
    "wilson": "Wilson where every value is 0 or 1",
    "bootstrap": "bootstrap over {unit}",
    "mcnemar": "exact McNemar p and Newcombe interval where every value is 0 or 1",
    "paired_bootstrap": "paired bootstrap over {unit}",
}


@dataclass(frozen=True, slots=True)
class Interval:
    """Confidence interval of a mean, and how it was computed."""

    low: float
    high: float
    method: Method


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of b - a over the same questions, with its confidence interval.

    ``p_value``: two-sided. By the bootstrap: twice the fraction of resamples on the other side of zero.
    """

    difference: float
    low: float
    high: float
    p_value: float
    method: PairedMethod


def mean_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Interval of the mean of ``values``, one per question: Wilson's if all are 0 or 1, else the bootstrap's.

    Raises ValueError when there are none.
    """
    if len(values) and _zero_or_one(values):
        return Interval(*_wilson(round(sum(values)), len(values), confidence), "wilson")
    return Interval(*bootstrap_interval(values, seed=seed, resamples=resamples, confidence=confidence), "bootstrap")


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values``, one value per question. Raises ValueError when there are none."""
    means = _resampled_means(np.asarray(values, dtype=np.float64), seed, resamples)
    return _percentiles(means, confidence)


def macro_interval(
    columns: Sequence[Sequence[float]], *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean over sets of their means; each of ``columns`` has the values of one set's questions.

    The sets' own intervals (`mean_interval`), joined by the method of variance estimates recovery (Zou & Donner,
    Statistics in Medicine 27, 2008, 1693-1702): sets of nothing but wrong answers still have a width. Raises
    ValueError for a set without questions.
    """
    found = [mean_interval(column, seed=seed, resamples=resamples, confidence=confidence) for column in columns]
    means = [float(np.mean(column)) for column in columns]
    centre, count = float(np.mean(means)), len(columns)
    below = math.sqrt(sum((mean - one.low) ** 2 for mean, one in zip(means, found, strict=True))) / count
    above = math.sqrt(sum((one.high - mean) ** 2 for mean, one in zip(means, found, strict=True))) / count
    return centre - below, centre + above


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> PairedDifference:
    """How much better b is than a, question by question; ``a[i]`` and ``b[i]`` are for the same question.

    McNemar's exact test if all values are 0 or 1, else the bootstrap.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired")
    if len(a) and _zero_or_one(a) and _zero_or_one(b):
        return _paired_shares(a, b, confidence)
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    means = _resampled_means(differences, seed, resamples)
    low, high = _percentiles(means, confidence)
    tail = min(float(np.mean(means <= 0)), float(np.mean(means >= 0)))
    return PairedDifference(float(differences.mean()), low, high, min(1.0, 2 * tail), "paired_bootstrap")


def explained(what: str, methods: Iterable[Mapping[str, str]], unit: str = "questions") -> str:
    """One line for readers: which measures' intervals were computed how. Empty if there are none."""
    names: dict[str, dict[str, None]] = {method: {} for method in _WORDS}
    for by_measure in methods:
        for measure, method in by_measure.items():
            names.setdefault(method, {})[measure] = None
    used = {_WORDS.get(method, method).format(unit=unit): ", ".join(found) for method, found in names.items() if found}
    return f"{what}: " + "; ".join(f"{how} ({measures})" for how, measures in used.items()) if used else ""


def methods_of(figures: Mapping[str, Any]) -> dict[str, str]:
    """By measure, the method of its interval in the content of a ``metrics.json``; old files have the bootstrap's."""
    known = figures.get("interval_methods") or {}
    measures = [name.removesuffix("_interval") for name in figures if name.endswith("_interval")]
    return {measure: known.get(measure, "bootstrap") for measure in measures}


def _zero_or_one(values: Sequence[float]) -> bool:
    return all(value in (0, 1) for value in values)


def _wilson(right: int, of: int, confidence: float) -> tuple[float, float]:
    from scipy.stats import binomtest

    found = binomtest(right, of).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def _paired_shares(a: Sequence[float], b: Sequence[float], confidence: float) -> PairedDifference:
    """Exact McNemar test, with Newcombe's interval: Wilson's of both shares, joined by their correlation."""
    from scipy.stats import binomtest

    of = len(a)
    right_a, right_b = round(sum(a)), round(sum(b))
    both = sum(x == y == 1 for x, y in zip(a, b, strict=True))
    only_a, only_b = right_a - both, right_b - both
    discordant = only_a + only_b
    p_value = float(binomtest(only_b, discordant).pvalue) if discordant else 1.0
    product = float(both * (of - right_a - only_b) - only_a * only_b)
    if product > 0:
        product = max(product - of / 2, 0.0)  # Newcombe's continuity correction
    spread = math.sqrt(right_a * (of - right_a) * right_b * (of - right_b))
    correlation = product / spread if spread else 0.0
    share_a, share_b = right_a / of, right_b / of
    low_a, high_a = _wilson(right_a, of, confidence)
    low_b, high_b = _wilson(right_b, of, confidence)
    below = _joined(share_b - low_b, high_a - share_a, correlation)
    above = _joined(high_b - share_b, share_a - low_a, correlation)
    difference = (only_b - only_a) / of
    return PairedDifference(difference, difference - below, difference + above, p_value, "mcnemar")


def _joined(one: float, other: float, correlation: float) -> float:
    """Standard deviation of a difference, from those of its two terms and their correlation."""
    return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))


def _resampled_means(values: NDArray[np.float64], seed: int, resamples: int) -> NDArray[np.float64]:
    if values.size == 0:
        raise ValueError("no values to resample")
    random = np.random.default_rng(seed)
    rows = max(1, _CELLS // values.size)
    chunks = [min(rows, resamples - start) for start in range(0, resamples, rows)]
    return np.concatenate([values[random.integers(0, values.size, (n, values.size))].mean(axis=1) for n in chunks])


def _percentiles(means: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
