"""Intervals and tests agree with hand-worked values, scipy and what is known about means."""

import math
import random

import pytest
from scipy.stats import binomtest

from sleuth import statistics
from sleuth.statistics import (
    bootstrap_interval,
    explained,
    macro_interval,
    mean_interval,
    methods_of,
    paired_difference,
)


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


@pytest.mark.parametrize(
    ("right", "of", "low", "high"),
    [
        (0, 24, 0.0, 0.137976),  # z² / (n + z²)
        (24, 24, 0.862024, 1.0),
        (12, 24, 0.314274, 0.685726),
        (81, 263, 0.255289, 0.366210),  # a textbook example: .2553 to .3662
        (1, 1, 0.206549, 1.0),
    ],
)
def test_the_interval_of_a_share_is_wilsons(right: int, of: int, low: float, high: float) -> None:
    found = mean_interval([1.0] * right + [0.0] * (of - right))
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-6)
    assert found.method == "wilson"
    assert found.low <= right / of <= found.high
    given = binomtest(right, of).proportion_ci(0.95, "wilson")
    assert (found.low, found.high) == pytest.approx((given.low, given.high), abs=1e-12)


def test_the_interval_of_other_means_is_the_bootstraps() -> None:
    values = [0.0, 1.0, 0.5, 0.25]
    found = mean_interval(values, seed=1, resamples=200)
    assert (found.low, found.high) == bootstrap_interval(values, seed=1, resamples=200)
    assert found.method == "bootstrap"
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[list[float], list[float]]:
    a = [1.0] * (both + only_a) + [0.0] * (only_b + neither)
    return a, [1.0] * both + [0.0] * only_a + [1.0] * only_b + [0.0] * neither


@pytest.mark.parametrize(
    ("table", "p_value", "low", "high"),
    [
        ((36, 2, 12, 0), 2 * (1 + 14 + 91) / 2**14, 0.0569, 0.3404),  # the interval: Newcombe 1998, method 10
        ((0, 0, 0, 24), 1.0, -0.1380, 0.1380),
        ((10, 0, 5, 9), 2 / 2**5, None, None),
        ((3, 4, 4, 3), 1.0, None, None),
    ],
)
def test_shares_are_compared_by_mcnemars_exact_test(
    table: tuple[int, int, int, int], p_value: float, low: float | None, high: float | None
) -> None:
    found = paired_difference(*pairs(*table))
    back = paired_difference(*reversed(pairs(*table)))
    assert found.difference == pytest.approx((table[2] - table[1]) / sum(table))
    assert found.p_value == back.p_value == pytest.approx(p_value)
    assert found.method == "mcnemar"
    assert found.low < found.difference < found.high
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    if low is not None and high is not None:
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_means_of_samples_are_compared_by_the_bootstrap() -> None:
    found = paired_difference([0.0, 0.5, 1.0], [0.5, 0.5, 1.0])
    assert found.method == "paired_bootstrap"


def test_it_is_said_which_interval_is_whose() -> None:
    assert (
        explained("95 % intervals", [{"em": "wilson", "f1": "bootstrap"}, {"em": "wilson", "f1": "wilson"}])
        == "95 % intervals: Wilson where every value is 0 or 1 (em, f1); bootstrap over questions (f1)"
    )
    assert explained("95 % intervals", []) == ""
    assert methods_of({"em_interval": [0, 1], "f1_interval": [0, 1], "interval_methods": {"em": "wilson"}}) == {
        "em": "wilson",
        "f1": "bootstrap",
    }


def test_the_interval_of_a_mean_over_sets_joins_those_of_the_sets() -> None:
    column = [1.0] * 30 + [0.0] * 70
    one = mean_interval(column)
    assert macro_interval([column]) == pytest.approx((one.low, one.high))
    low, high = macro_interval([column] * 4)
    assert (0.3 - low, high - 0.3) == pytest.approx(((0.3 - one.low) / 2, (one.high - 0.3) / 2))
    low, high = macro_interval([[0.0] * 24, [0.0] * 24])
    assert low == pytest.approx(0.0, abs=1e-12) and 0.05 < high < 0.15, "nothing but wrong answers has a width"
    big, small = [0.5, 1.0] * 500, [0.25, 0.75] * 10
    low, high = macro_interval([big, small])
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.25**2 / 1000 + 0.25**2 / 20) / 2, rel=0.1)


def test_the_interval_of_a_mean_over_sets_covers_it_about_as_often_as_it_says() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(150):
        columns = [[float(rng.random() < p) for _ in range(40)] for p in (0.1, 0.5, 0.7)]
        low, high = macro_interval(columns)
        covered += low <= (0.1 + 0.5 + 0.7) / 3 <= high
    assert 0.90 <= covered / 150 <= 0.99
