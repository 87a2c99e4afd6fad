"""Laws of the histogram."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.stats.histogram import Histogram
from paceline.stats.quantiles import quantile

durations = st.lists(st.floats(min_value=0, max_value=1e6), max_size=200)
some = st.lists(st.floats(min_value=1e-6, max_value=1e6), min_size=1, max_size=200)
ratios = st.floats(min_value=0, max_value=1)


@given(durations, durations)
def test_merging_shards_equals_recording_everything(left: list[float], right: list[float]) -> None:
    """Two merged histograms answer as one that saw every sample."""
    assert Histogram.of(left).merge(Histogram.of(right)) == Histogram.of(left + right)


@given(durations)
def test_recording_one_by_one_equals_recording_all_at_once(samples: list[float]) -> None:
    at_once = Histogram()
    at_once.record_all(np.array(samples))
    assert at_once == Histogram.of(samples)


@given(st.lists(st.sampled_from([0.0, 1e-9, 127e-9, 128e-9, 0.001, 1.0, 3600.0]), min_size=1, max_size=60))
def test_many_blocks_answer_as_one(samples: list[float]) -> None:
    """Records are counted in blocks; where a block ends changes nothing."""
    histogram = Histogram.of(samples * 80)
    assert histogram.count == len(samples) * 80
    assert histogram.quantile(0.5) == pytest.approx(quantile(samples, 0.5), rel=0.005, abs=1e-9)


@given(some, ratios)
def test_quantiles_are_within_one_per_cent(samples: list[float], q: float) -> None:
    found = Histogram.of(samples).quantile(q)
    assert found == pytest.approx(quantile(samples, q), rel=0.005, abs=1e-9)


@given(some, ratios, ratios)
def test_quantiles_are_monotone(samples: list[float], a: float, b: float) -> None:
    histogram = Histogram.of(samples)
    low, high = histogram.quantile(min(a, b)), histogram.quantile(max(a, b))
    assert low is not None
    assert high is not None
    assert low <= high


@given(durations, some)
def test_what_came_since_a_copy_is_what_was_recorded_after_it(before: list[float], after: list[float]) -> None:
    histogram = Histogram.of(before)
    earlier = histogram.copy()
    for sample in after:
        histogram.record(sample)
    new, alone = histogram.since(earlier), Histogram.of(after)
    assert new.count == alone.count
    assert new.quantiles([0, 0.5, 0.99]) == pytest.approx(alone.quantiles([0, 0.5, 0.99]), rel=0.01, abs=2e-9)
    assert earlier == Histogram.of(before)


@given(durations)
def test_a_saved_histogram_comes_back_equal(samples: list[float]) -> None:
    histogram = Histogram.of(samples)
    assert Histogram.decode(histogram.encode()) == histogram


@given(durations)
def test_count_mean_and_extremes_are_exact(samples: list[float]) -> None:
    histogram = Histogram.of(samples)
    assert histogram.count == len(samples)
    if samples:
        assert histogram.mean_s == pytest.approx(math.fsum(samples) / len(samples))
        assert (histogram.min_s, histogram.max_s) == (min(samples), max(samples))


def test_an_empty_histogram_has_no_quantile_and_no_mean() -> None:
    assert Histogram().quantile(0.5) is None
    assert Histogram().mean_s is None


def test_durations_beyond_the_range_count_at_its_ends() -> None:
    histogram = Histogram.of([-1.0, 1e9])
    assert histogram.quantile(0) == 0.0
    assert histogram.count == 2
    assert Histogram.of([1e9]).quantile(0.5) == 1e9


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_outside_0_to_1_is_refused(q: float) -> None:
    with pytest.raises(ValueError, match="q must lie in 0 to 1"):
        Histogram.of([1.0]).quantile(q)


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b"[]",
        b'{"schema":1,"counts":[[99999,1]],"sum_s":0,"min_s":0,"max_s":0}',
        b'{"schema":1,"counts":[[1,-1]],"sum_s":0,"min_s":0,"max_s":0}',
    ],
)
def test_anything_but_a_saved_histogram_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        Histogram.decode(data)
