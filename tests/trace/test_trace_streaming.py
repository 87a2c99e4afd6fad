"""Figures of streamed answers, on answers whose figures are known."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.load.gates import parse_objective
from paceline.model.request import Request
from paceline.trace.figures import figures_of
from paceline.trace.streaming import (
    Bound,
    bounds_of,
    is_good,
    output_tokens,
    parse_bound,
    streaming_figures,
    streaming_parts,
    time_per_token_s,
)


def answer(
    index: int = 0, *, ttft_s: float = 0.2, gaps_s: tuple[float, ...] = (0.02,) * 49, **fields: object
) -> Request:
    """Asked at 10 s; the first byte comes 0.1 s before the first token, the end 0.05 s after the last."""
    first_s = 10.0 + ttft_s
    values: dict[str, object] = {
        "index": index, "scenario": "s", "endpoint": "POST /", "trace_id": f"{index}", "intended_s": 10.0,
        "started_s": 10.01, "first_byte_s": first_s - 0.1, "first_token_s": first_s, "gaps_s": list(gaps_s),
        "ended_s": first_s + sum(gaps_s) + 0.05, "status": 200,
    }  # fmt: skip
    return msgspec.convert(values | fields, Request)


def test_the_figures_of_one_answer_are_those_of_its_formulas() -> None:
    """50 tokens, the first after 0.2 s, one each 20 ms, and 50 ms until the end: 1.23 s in all."""
    found = streaming_figures([answer(output_tokens=50)])
    assert found is not None
    assert found.first_token is not None
    assert found.first_token.p50 == pytest.approx(0.2)
    assert found.token_gap is not None
    assert (found.token_gap.n, found.token_gap.p99) == (49, 0.02)
    assert found.time_per_token is not None
    assert found.time_per_token.p50 == pytest.approx((1.23 - 0.2) / 49)
    assert found.tokens_per_s is not None
    assert found.tokens_per_s.p50 == pytest.approx(50 / 1.23)
    assert found.output_tokens == 50
    assert found.output_tokens_per_s == pytest.approx(50 / 1.23)


def test_pooled_gaps_show_the_stutter_that_means_hide() -> None:
    """One gap of 1 s among 99 of 10 ms: the mean gap is 20 ms, the longest of the pooled ones 1 s."""
    found = streaming_figures([answer(gaps_s=(0.01,) * 99 + (1.0,))])
    assert found is not None
    assert found.mean_gap is not None
    assert found.mean_gap.max == pytest.approx(0.0199)
    assert found.token_gap is not None
    assert (found.token_gap.p50, found.token_gap.max) == (0.01, 1.0)


def test_stated_tokens_count_before_events() -> None:
    """Gemini sends several tokens an event."""
    assert output_tokens(answer(gaps_s=(0.1,) * 9)) == 10
    assert output_tokens(answer(gaps_s=(0.1,) * 9, output_tokens=40)) == 40
    assert time_per_token_s(answer(gaps_s=(0.1,) * 9, output_tokens=40)) == pytest.approx(0.95 / 39)
    assert time_per_token_s(answer(gaps_s=(), output_tokens=1)) is None
    assert output_tokens(answer(gaps_s=(), first_token_s=None)) is None


def test_runs_without_first_tokens_have_the_first_byte() -> None:
    found = streaming_figures([answer(first_token_s=None)])
    assert found is not None
    assert found.first_token is not None
    assert found.first_token.p50 == pytest.approx(0.1)


def test_cached_and_uncached_are_told_apart() -> None:
    requests = [answer(cache="hit", ttft_s=0.01), answer(cache="join", ttft_s=0.02), answer(cache="miss", ttft_s=0.5)]
    parts = streaming_parts(requests)
    assert {name: part.requests for name, part in parts.items()} == {"all": 3, "cached": 2, "uncached": 1}
    figures = figures_of(requests, [], [])
    assert figures.cached_first_token_p95_s == pytest.approx(0.02)
    assert figures.uncached_first_token_p50_s == pytest.approx(0.5)
    assert figures.token_gap_p99_s == 0.02
    assert figures.tokens_per_s == pytest.approx(150 / 1.53)
    assert set(streaming_parts([answer()])) == {"all"}


def test_answers_that_do_not_stream_have_no_such_figures() -> None:
    plain = answer(gaps_s=(), first_token_s=None)
    assert streaming_figures([plain]) is None
    figures = figures_of([plain], [], [])
    assert (figures.first_token_p50_s, figures.tokens_per_s, figures.goodput_ratio) == (None, None, None)


def test_goodput_counts_requests_that_meet_every_bound() -> None:
    """Of four, one is late with its first token, one stands still for 0.3 s, one failed."""
    requests = [
        answer(0), answer(1, ttft_s=0.6), answer(2, gaps_s=(0.02, 0.3)), answer(3, error="status", status=500)
    ]  # fmt: skip
    bounds = [Bound(measure="first_token_s", limit_s=0.5), Bound(measure="max_gap_s", limit_s=0.1)]
    assert [is_good(r, bounds) for r in requests] == [True, False, False, False]
    figures = figures_of(requests, [], [], bounds=bounds)
    assert figures.goodput_ratio == 0.25
    assert figures.goodput_per_s == pytest.approx(1 / 1.63)
    assert is_good(answer(gaps_s=(), first_token_s=None), bounds)


def test_objectives_on_latencies_bound_single_requests() -> None:
    asked = [parse_objective(text) for text in ("p50_s<1", "p99_s<=5", "token_gap_p99_s<0.1", "hit_ratio>0.5")]
    assert bounds_of(asked) == [Bound(measure="latency_s", limit_s=5.0), Bound(measure="max_gap_s", limit_s=0.1)]


def test_a_bound_reads_as_it_is_said() -> None:
    assert parse_bound("first_token_s<0.5") == Bound(measure="first_token_s", limit_s=0.5)
    assert parse_bound(" latency_s <= 2") == Bound(measure="latency_s", limit_s=2.0)
    for text in ("latency_s", "latency_s<soon", "latency_s>2", "latency_s<inf"):
        with pytest.raises(ValueError, match="a bound looks like"):
            parse_bound(text)


def test_a_bound_on_nothing_known_is_refused() -> None:
    with pytest.raises(ValueError, match="a bound is one of latency_s"):
        Bound(measure="p95_s", limit_s=1.0)


def test_cost_comes_from_answers_when_all_state_it() -> None:
    """Without spans; a failed request that states none was not billed."""
    requests = [answer(0, cost_usd=0.001), answer(1, cost_usd=0.0), answer(2, error="timeout", status=None)]
    assert figures_of(requests, [], []).cost_per_1000_usd == pytest.approx(1 / 3)
    assert figures_of([*requests, answer(3)], [], []).cost_per_1000_usd is None
    assert figures_of([*requests, answer(3, cache="hit")], [], []).cost_per_1000_usd == pytest.approx(1 / 4)
    assert figures_of([answer(0, cache="hit")], [], []).cost_per_1000_usd is None


@given(
    st.lists(st.floats(0.001, 10.0), max_size=30), st.floats(0.001, 10.0), st.floats(0.01, 10.0), st.floats(0.01, 10.0)
)
def test_wider_bounds_never_make_a_request_worse(
    gaps_s: list[float], ttft_s: float, limit_s: float, more_s: float
) -> None:
    request = answer(ttft_s=ttft_s, gaps_s=tuple(gaps_s))
    for measure in ("latency_s", "first_token_s", "time_per_token_s", "mean_gap_s", "max_gap_s"):
        narrow, wide = (Bound(measure=measure, limit_s=limit) for limit in (limit_s, limit_s + more_s))
        assert is_good(request, [narrow]) <= is_good(request, [wide])
