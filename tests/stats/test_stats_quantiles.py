"""Quantiles against their definition, intervals against closed forms and their promised coverage."""

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.stats.quantiles import (
    incomplete_beta,
    quantile,
    quantile_interval,
    quantiles,
    ratio_interval,
    student_t,
)

samples_of = st.lists(st.floats(min_value=0, max_value=1e6), min_size=1, max_size=100)


@given(samples_of, st.floats(min_value=0.001, max_value=1))
def test_the_quantile_is_the_least_sample_that_covers_the_share(samples: list[float], q: float) -> None:
    found = quantile(samples, q)
    covered = sum(s <= found for s in samples)
    assert found in samples
    assert covered >= q * len(samples) - 1e-6
    assert sum(s < found for s in samples) < q * len(samples)


@pytest.mark.parametrize(("q", "rank"), [(0, 1), (0.07, 7), (0.5, 50), (0.95, 95), (0.951, 96), (1, 100)])
def test_quantiles_of_1_to_100_are_their_ranks(q: float, rank: int) -> None:
    """Also where q * n is a hair above a whole number in floats (0.07 * 100)."""
    assert quantile(range(1, 101), q) == rank
    assert quantiles(range(1, 101), [q]) == [rank]


def test_no_samples_have_no_quantile() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        quantile([], 0.5)


@pytest.mark.parametrize(
    ("n", "q", "ranks"),
    [
        (10, 0.5, (2, 9)),  # Conover, table: 97.9 %
        (20, 0.5, (6, 15)),
        (100, 0.5, (40, 61)),
        (100, 0.95, (90, 100)),
    ],
)
def test_intervals_are_the_known_order_statistics(n: int, q: float, ranks: tuple[int, int]) -> None:
    interval = quantile_interval(range(1, n + 1), q)
    assert (interval.low, interval.high) == ranks
    covers = [math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(ranks[0], ranks[1])]
    assert math.fsum(covers) >= 0.95


def test_a_bound_that_the_samples_cannot_give_is_infinite() -> None:
    assert quantile_interval([1.0, 2.0, 3.0], 0.5).low == -math.inf
    assert quantile_interval(range(50), 0.99).high == math.inf


def test_intervals_cover_the_true_quantile_as_often_as_promised() -> None:
    """Exponential samples, true median ln 2: at least 95 % of the intervals hold it (seeded)."""
    rng = random.Random(3)
    held = 0
    for _ in range(400):
        interval = quantile_interval([rng.expovariate(1) for _ in range(60)], 0.5)
        held += interval.low <= math.log(2) <= interval.high
    assert held >= 380


def test_large_samples_are_handled_exactly() -> None:
    """With n samples the median's interval is about 1.96 * sqrt(n) / 2 ranks on each side."""
    n = 200_000
    interval = quantile_interval(range(n), 0.5)
    assert interval.high - n / 2 == pytest.approx(1.96 * math.sqrt(n) / 2, rel=0.01)


@pytest.mark.parametrize(
    ("p", "freedom", "expected"), [(0.975, 1, 12.706), (0.975, 10, 2.228), (0.95, 7, 1.895), (0.975, 1e6, 1.960)]
)
def test_student_t_matches_the_printed_table(p: float, freedom: float, expected: float) -> None:
    assert student_t(p, freedom) == pytest.approx(expected, abs=6e-4)


@given(st.integers(1, 60), st.integers(1, 60), st.floats(min_value=0.001, max_value=0.999))
def test_the_incomplete_beta_is_the_binomial_tail(a: int, b: int, x: float) -> None:
    n = a + b - 1
    tail = math.fsum(math.comb(n, k) * x**k * (1 - x) ** (n - k) for k in range(a, n + 1))
    assert incomplete_beta(a, b, x) == pytest.approx(tail, abs=1e-10)


def test_the_ratio_of_runs_is_that_of_geometric_means() -> None:
    ratio, interval = ratio_interval([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert ratio == pytest.approx(2.0)
    assert interval.low < 2.0 < interval.high
    assert interval.low * interval.high == pytest.approx(4.0)


def test_identical_systems_are_called_different_as_rarely_as_promised() -> None:
    """Eight runs a side with a run effect of 10 %: one lies in 93-97 % of the intervals (seeded)."""
    rng = random.Random(5)
    held = 0
    for _ in range(600):
        before, after = ([math.exp(rng.gauss(0, 0.1)) for _ in range(8)] for _ in range(2))
        _, interval = ratio_interval(before, after)
        held += interval.low <= 1 <= interval.high
    assert 0.93 <= held / 600 <= 0.97


def test_runs_that_do_not_vary_have_a_ratio_without_doubt() -> None:
    ratio, interval = ratio_interval([2.0, 2.0], [3.0, 3.0])
    assert interval.low == interval.high == ratio == pytest.approx(1.5)


@pytest.mark.parametrize("side", [[1.0], [0.0, 1.0], []])
def test_a_ratio_needs_two_runs_and_positive_values(side: list[float]) -> None:
    with pytest.raises(ValueError, match="two runs a side"):
        ratio_interval(side, [1.0, 2.0])


@given(st.lists(st.floats(min_value=0.1, max_value=10), min_size=2, max_size=10))
def test_the_ratio_agrees_with_the_standard_library(values: list[float]) -> None:
    ratio, _ = ratio_interval([1.0, 1.0], values)
    assert ratio == pytest.approx(statistics.geometric_mean(values))
