"""The nouns check themselves, and prices are exact or unknown."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.model import change
from paceline.model.change import Change, describe
from paceline.model.estimate import Estimate, Range
from paceline.model.figures import Figures, Objective
from paceline.model.price import price_of
from paceline.model.span import Span

EVERY_CHANGE: list[Change] = [
    change.Parallelise(steps=["a", "b"]),
    change.Cache(key="text", shared_in_flight=True),
    change.SpeedUp(step="a", factor=Range(2.0, 3.0)),
    change.Remove(step="a", repeats_only=True),
    change.Defer(step="a"),
    change.Limit(resource="provider", size=8),
    change.Route(step="a", model="gpt-4o-mini"),
    change.Trim(step="a", input_ratio=Range(0.4, 0.6)),
    change.Batch(step="a", size=16),
]


@pytest.mark.parametrize("each", EVERY_CHANGE, ids=lambda c: type(c).__name__)
def test_a_change_survives_json_and_says_what_it_does(each: Change) -> None:
    """Changes are stored in findings, projections and target files."""
    assert msgspec.json.decode(msgspec.json.encode(each), type=Change) == each
    assert describe(each)


def test_an_unknown_field_of_a_change_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.json.decode(b'{"kind": "defer", "step": "a", "stpe": "b"}', type=Change)


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_a_range_holds_its_value_or_refuses(low: float, high: float) -> None:
    if low <= high:
        assert low <= Range.parse([low, high]).value <= high or low == high
    else:
        with pytest.raises(ValueError, match="low <= high"):
            Range(low, high)


@pytest.mark.parametrize("raw", ["fast", [1], [1, "2"], None, True])
def test_a_range_that_is_neither_number_nor_pair_is_refused(raw: object) -> None:
    with pytest.raises(ValueError, match=r"expected a number or \[low, high\]"):
        Range.parse(raw)


def test_an_estimate_holds_what_lies_in_its_interval() -> None:
    estimate = Estimate(value=2.0, low=1.0, high=3.0).scaled(2.0)
    assert estimate.holds(6.0)
    assert not estimate.holds(6.1)


def test_known_prices_are_exact_and_unknown_ones_unknown() -> None:
    """gpt-4o: $2.50 a million in, $1.25 cached, $10 out; never zero for a model nobody knows."""
    price = price_of("gpt-4o", "openai")
    assert price is not None
    assert price.cost_usd(1_000_000, 0) == pytest.approx(2.5)
    assert price.cost_usd(1_000_000, 100_000, cached_tokens=1_000_000) == pytest.approx(1.25 + 1.0)
    assert price_of("a-model-nobody-sells") is None
    assert price_of("text-embedding-3-small") == price_of("text-embedding-3-small", "openai") != None  # noqa: E711


def figures(**known: object) -> Figures:
    return msgspec.structs.replace(Figures(requests=1, duration_s=1.0), **known)


def test_an_objective_is_met_missed_or_unknown() -> None:
    objective = Objective(name="P95", metric="p95_s", op="<", target=8.0)
    assert objective.met(figures(p95_s=7.9)) is True
    assert objective.met(figures(p95_s=8.0)) is False
    assert objective.met(figures()) is None
    assert Objective(name="leak", metric="memory_verdict", op="!=", target="leak").met(figures(memory_verdict="steady"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"metric": "p96_s"}, "unknown metric"), ({"op": "~"}, "unknown op"), ({"level": "nice"}, "unknown level")],
)
def test_an_impossible_objective_is_refused_with_what_is_possible(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Objective(**{"name": "x", "metric": "p95_s", "op": "<", "target": 1.0, **wrong})  # type: ignore[arg-type]


def test_a_span_knows_its_step_by_the_callers_function() -> None:
    span = Span(
        trace_id="t", span_id="s", name="n", kind="llm", start_ns=5, duration_ns=7, code="app.py:88 classify_intent"
    )
    assert (span.step, span.end_ns) == ("classify_intent", 12)
