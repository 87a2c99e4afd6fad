"""Figures are written with their unit and no more digits than mean something."""

import pytest

from paceline.model.estimate import Estimate
from paceline.report import units
from paceline.report.charts import LogAxis


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (76.83, "76.8 s"),
        (2.414, "2.41 s"),
        (0.9996, "1.00 s"),
        (0.085, "85 ms"),
        (0.0004, "0.4 ms"),
        (1234.0, "1,234 s"),
    ],
)
def test_seconds(value: float, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("success_ratio", 0.996, "99.6 %"),
        ("hit_ratio", 0.4, "40 %"),
        ("cost_per_1000_usd", 12.4, "$12.40"),
        ("memory_mb", 5700.0, "5.7 GB"),
        ("requests_per_s", 3.31, "3.3/s"),
        ("p95_s", 8.0, "8.00 s"),
        ("memory_verdict", "leak", "leak"),
        ("p95_s", None, "not known"),
    ],
)
def test_a_figure_is_written_by_the_unit_in_its_name(metric: str, value: float | str | None, text: str) -> None:
    assert units.figure(metric, value) == text


def test_an_estimate_shows_its_interval() -> None:
    assert units.estimate("p95_s", Estimate(value=2.4, low=2.1, high=2.8)) == "2.40 s (2.10 s to 2.80 s)"


def test_a_log_axis_keeps_order_and_bounds() -> None:
    axis = LogAxis.over([0.01, 80.0], 50, 800)
    places = [axis.at(v) for v in (0.0, 0.01, 0.1, 1.0, 80.0, 1e9)]
    assert places == sorted(places)
    assert places[0] == 50
    assert places[-1] == 800
    assert all(axis.low <= t <= axis.high for t in axis.ticks())
