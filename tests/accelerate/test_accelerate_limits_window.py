"""A provider that counts over a sliding minute is followed once it has shown that it does."""

import copy
import random

from hypothesis import given
from hypothesis import strategies as st
from tests.accelerate.refusing import SlidingWindow

from paceline.accelerate.limits.meter import LocalMeter
from paceline.accelerate.limits.policy import LimitsPolicy
from paceline.accelerate.limits.window import Window

calls = st.lists(st.tuples(st.floats(0, 5), st.integers(1, 4000)), min_size=1, max_size=200)


@given(calls)
def test_an_armed_window_keeps_any_minute(calls: list[tuple[float, int]]) -> None:
    """What it lets pass, an exact sliding minute lets pass, too; and its waits are long enough."""
    window, provider, now_s = Window(10_000, 60.0), SlidingWindow(10_000, 60.0), 0.0
    window.arm(0.0, 1e9)
    for pause_s, tokens in calls:
        now_s += pause_s
        wait_s = window.wait_s(tokens, now_s)
        if wait_s > 0:
            assert copy.deepcopy(window).wait_s(tokens, now_s + wait_s) == 0.0
            continue
        assert provider.wait_s(tokens, now_s) == 0.0
        window.take(tokens, now_s)
        provider.take(tokens, now_s)


def test_it_bounds_nothing_unless_armed() -> None:
    """And nothing any more after that."""
    window = Window(100, 60.0)
    window.take(1000, 0.0)
    assert window.wait_s(1, 1.0) == 0.0
    window.arm(1.0, 5.0)
    assert window.wait_s(1, 1.0) == 59.5
    assert window.wait_s(1, 6.0) == 0.0


def test_what_is_larger_than_the_limit_waits_for_an_empty_window() -> None:
    """Else it would wait for ever."""
    window = Window(100, 60.0)
    window.arm(0.0, 1e9)
    assert window.wait_s(500, 0.0) == 0.0
    window.take(500, 0.0)
    assert window.wait_s(500, 30.0) == 30.5
    assert window.wait_s(500, 61.0) == 0.0


def test_a_meter_follows_the_window_for_ten_minutes_after_a_refusal() -> None:
    """Bursts are small meanwhile, and a minute's worth again afterwards."""
    draw = random.Random(1)
    meter = LocalMeter(LimitsPolicy(tokens_per_min=60_000).for_model("m"), 0.0)
    assert meter.try_take(60_000, 0.0)
    assert meter.wait_s(1000, 1.0) == 0.0  # a bucket: a second's worth is there again
    meter.not_before(1.0, None, 1000.0, 1.0)
    assert meter.wait_s(1000, 2.0) == 58.5
    now_s, passed = 61.0, 0
    provider = SlidingWindow(60_000, 60.0)
    while now_s < 600.0:
        tokens = draw.choice((100, 500, 1000, 4000))
        wait_s = meter.wait_s(tokens, now_s)
        if wait_s == 0.0:
            assert provider.wait_s(tokens, now_s) == 0.0
            meter.take(tokens, now_s)
            provider.take(tokens, now_s)
            passed += tokens
        now_s += max(wait_s, 0.01)
    assert passed > 0.93 * 1000 * (600 - 61)
    meter.take(1, 700.0)
    meter.correct(0)
    assert meter.try_take(50_000, 800.0)
