"""The bootstrap agrees with what is known about means."""

import math
import random

import pytest

from sleuth import statistics
from sleuth.statistics import bootstrap_interval, paired_difference


def test_interval_of_a_proportion_is_close_to_the_normal_one() -> None:
    values = [1.0] * 300 + [0.0] * 700
    low, high = bootstrap_interval(values)
    half = 1.96 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - half, abs=0.003)
    assert high == pytest.approx(0.3 + half, abs=0.003)


def test_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = random.Random(0)
    covered = 0
    for trial in range(200):
        values = [float(rng.random() < 0.5) for _ in range(60)]
        low, high = bootstrap_interval(values, seed=trial, resamples=500)
        covered += low <= 0.5 <= high
    assert 178 <= covered <= 200


def test_same_seed_same_interval_whatever_the_memory_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    values = [rng.random() for _ in range(50)]
    whole = bootstrap_interval(values, seed=3, resamples=400)
    assert whole != bootstrap_interval(values, seed=4, resamples=400)
    monkeypatch.setattr(statistics, "_CELLS", 700)
    assert bootstrap_interval(values, seed=3, resamples=400) == whole


def test_constant_values_have_no_width_and_none_is_an_error() -> None:
    assert bootstrap_interval([0.25] * 9) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_interval([])


def test_pairing_sees_a_small_steady_gain_that_unpaired_intervals_miss() -> None:
    rng = random.Random(2)
    before = [rng.random() for _ in range(100)]
    after = [value + 0.02 + 0.02 * rng.random() for value in before]
    found = paired_difference(before, after)
    assert found.low > 0
    assert found.low <= found.difference <= found.high
    assert found.p_value == 0.0
    assert bootstrap_interval(after)[0] < bootstrap_interval(before)[1]


def test_pairing_of_equals_and_of_unequal_lengths() -> None:
    assert paired_difference([1.0, 0.0], [1.0, 0.0]).p_value == 1.0
    with pytest.raises(ValueError, match="2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
