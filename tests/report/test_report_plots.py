"""Plots: what lies where, and that they are whole without a script."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.report.plots import (
    BAND,
    BARS,
    CLOCK,
    COUNT,
    DOTS,
    MEGABYTES,
    QUANTILE,
    RATE,
    SECONDS,
    Axis,
    Layer,
    Mark,
    Plot,
)

values = st.floats(min_value=1e-6, max_value=1e6)


SCALES = [(SECONDS, False), (SECONDS, True), (CLOCK, False), (RATE, False), (COUNT, True)]


@settings(max_examples=40)
@given(st.lists(values, min_size=1, max_size=20), st.sampled_from(SCALES))
def test_an_axis_holds_its_values_and_few_ticks_in_order(shown: list[float], scale: tuple[str, bool]) -> None:
    unit, log = scale
    axis = Axis.over(shown, unit, log=log)
    assert all(-1e-9 <= axis.share(v) <= 1 + 1e-9 for v in shown)
    ticks = axis.ticks()
    assert 1 <= len(ticks) <= 9
    shares = [axis.share(t) for t in ticks]
    assert shares == sorted(shares)
    assert all(-1e-9 <= share <= 1 + 1e-9 for share in shares)
    assert len({axis.text(t) for t in ticks}) == len(ticks)


@pytest.mark.parametrize(
    ("axis", "value", "text"),
    [
        (Axis(low=0, high=2, unit=SECONDS), 0.25, "250 ms"),
        (Axis(low=0, high=2, unit=SECONDS), 1.5, "1.5 s"),
        (Axis(low=0, high=60, unit=CLOCK), 15, "15 s"),
        (Axis(low=0, high=600, unit=CLOCK), 185, "3:05"),
        (Axis(low=0, high=7200, unit=CLOCK), 3700, "1:01:40"),
        (Axis(low=1, high=1e4, unit=QUANTILE, log=True), 1000, "99.9 %"),
        (Axis(low=0, high=900, unit=MEGABYTES), 400, "400 MB"),
        (Axis(low=0, high=9000, unit=RATE), 2000, "2,000/s"),
    ],
)
def test_ticks_are_labelled_in_their_unit(axis: Axis, value: float, text: str) -> None:
    assert axis.text(value) == text


def plot(*layers: Layer, **more: object) -> str:
    return Plot(
        title="T",
        group="time",
        x=Axis(low=0, high=4, unit=CLOCK),
        y=Axis(low=0, high=10),
        layers=layers,
        **more,  # type: ignore[arg-type]
    ).draw()


def path_of(markup: str, css: str) -> str:
    found = re.search(rf'class="{css}" d="([^"]*)"', markup)
    assert found is not None
    return found[1]


def test_curves_lie_where_their_values_say_and_break_where_there_is_none() -> None:
    markup = plot(Layer(label="P50", css="p50", xs=[0, 1, 2, 4], ys=[0, 5, None, 10]))
    assert path_of(markup, "line p50") == "M0,1000L250,500M1000,0"
    assert 'data-x="0,1,2,4"' in markup
    assert 'data-y="0,5,,10"' in markup


def test_areas_bars_and_dots_lie_there_too() -> None:
    markup = plot(
        Layer(label="", css="a", xs=[0, 4], ys=[10, 10], lows=[5, 0], kind=BAND, is_read=False),
        Layer(label="n", css="b", xs=[0, 1, 2], ys=[5, 0], kind=BARS),
        Layer(label="", css="c", xs=[2, 2], ys=[5, None], kind=DOTS, is_read=False),
    )
    assert path_of(markup, "band a") == "M0,0L1000,0L1000,1000L0,500Z"
    assert path_of(markup, "bars b") == "M0,1000V500H250V1000Z"
    assert path_of(markup, "dots c") == "M500,500h0"


def test_one_value_is_seen() -> None:
    assert path_of(plot(Layer(label="P50", css="p50", xs=[1], ys=[5])), "line p50") == "M250,500h0.1"


def test_text_is_never_markup() -> None:
    hostile = '"><script>alert(1)</script>'
    marks = [Mark(label=hostile, at=2, is_vertical=True), Mark(label=hostile, at=5, is_vertical=False)]
    markup = Plot(
        title=hostile,
        group="time",
        x=Axis(low=0, high=4),
        y=Axis(low=0, high=10),
        layers=[Layer(label=hostile, css="p50", xs=[1], ys=[5])],
        marks=marks,
        note=hostile,
    ).draw()
    assert "<script" not in markup
    assert markup.count("&lt;script") >= 5


def test_marks_outside_are_left_out() -> None:
    assert 'class="mark' not in plot(marks=[Mark(label="later", at=5, is_vertical=True)])
