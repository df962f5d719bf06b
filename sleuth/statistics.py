"""Confidence of a mean: seeded bootstrap over questions with percentile intervals.

Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_CELLS = 4_000_000
"""Draws held in memory at once: 32 MB of indices."""


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of b - a over the same questions, with its confidence interval.

    ``p_value``: two-sided: twice the fraction of resamples on the other side of zero.
    """

    difference: float
    low: float
    high: float
    p_value: float


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of the mean of ``values``, one value per question. Raises ValueError when there are none."""
    means = _resampled_means(np.asarray(values, dtype=np.float64), seed, resamples)
    return _percentiles(means, confidence)


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, seed: int = 0, resamples: int = 10_000, confidence: float = 0.95
) -> PairedDifference:
    """How much better b is than a, question by question; ``a[i]`` and ``b[i]`` are for the same question."""
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} values cannot be paired")
    differences = np.asarray(b, dtype=np.float64) - np.asarray(a, dtype=np.float64)
    means = _resampled_means(differences, seed, resamples)
    low, high = _percentiles(means, confidence)
    tail = min(float(np.mean(means <= 0)), float(np.mean(means >= 0)))
    return PairedDifference(float(differences.mean()), low, high, min(1.0, 2 * tail))


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
