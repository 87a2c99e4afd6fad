"""The figures of a run."""

import msgspec
import pytest
from tests.diagnose.builders import GATEWAY_ONLY, RunMaker, TraceMaker, make_run

from paceline.model.request import Request
from paceline.model.run import ScenarioInfo
from paceline.trace.data import RunData
from paceline.trace.figures import figures_of


def request(index: int, latency_s: float, **fields: object) -> Request:
    values: dict[str, object] = {
        "index": index, "scenario": "s", "endpoint": "GET /", "trace_id": f"t{index}", "intended_s": float(index),
        "started_s": index + 0.5, "ended_s": index + latency_s, "status": 200,
    }  # fmt: skip
    return msgspec.convert(values | fields, Request)


def test_latency_counts_from_the_intended_start() -> None:
    """A request sent half a second late and answered at once took half a second."""
    figures = figures_of([request(0, 0.5), request(1, 1.5)], [], [])
    assert (figures.p50_s, figures.p95_s, figures.mean_s, figures.max_s) == (0.5, 1.5, 1.0, 1.5)
    assert figures.requests_per_s == pytest.approx(2 / 2.5)
    assert figures.p95_interval_s is None
    assert (figures.cost_per_1000_usd, figures.swallowed_failure_ratio, figures.memory_mb) == (None, None, None)


def test_time_outs_count_as_slow_and_other_failures_only_as_failures() -> None:
    """Dropping the slowest requests must not improve the tail, a quick refusal must not improve the median."""
    requests = [request(i, 1.0) for i in range(8)]
    requests += [request(8, 60.0, error="timeout", status=None), request(9, 0.01, error="status", status=503)]
    figures = figures_of(requests, [], [])
    assert (figures.p50_s, figures.max_s) == (1.0, 60.0)
    assert figures.success_ratio == 0.8
    assert figures.errors == {"timeout": 1, "status 503": 1}


def test_cached_and_uncached_are_told_apart_and_a_zero_hit_breaks_nothing() -> None:
    """Hits and joins are cached; answers that do not say are neither."""
    requests = [request(0, 0.0, cache="hit"), request(1, 0.25, cache="join"), request(2, 2.0, cache="miss")]
    figures = figures_of([*requests, request(3, 1.0)], [], [])
    assert figures.hit_ratio == pytest.approx(2 / 3)
    assert (figures.cached_p50_s, figures.cached_p95_s, figures.uncached_p95_s) == (0.0, 0.25, 2.0)
    assert figures_of([request(0, 1.0)], [], []).hit_ratio is None


def test_no_request_gives_no_figure() -> None:
    """An empty run is data, not an error."""
    figures = figures_of([], [], [])
    assert (figures.requests, figures.p50_s, figures.requests_per_s) == (0, None, None)


def answered(trace: TraceMaker) -> None:
    first = trace.llm("answer", 1.0, system=900, user=100, output=100)
    trace.answer(first)


def test_cost_is_per_thousand_requests_and_counts_work_after_the_answer() -> None:
    """gpt-4o: 1,000 tokens in and 100 out are $0.0035."""
    run = make_run(answered).data()
    figures = figures_of(run.requests, run.spans, run.resources)
    assert figures.cost_per_1000_usd == pytest.approx(3.5)
    assert figures.llm_calls_per_request == 1.0
    assert figures.memory_mb == 300.0
    assert figures.memory_verdict == "steady"

    def also_later(trace: TraceMaker) -> None:
        trace.llm("log", 1.0, system=900, user=100, output=100, at_s=trace.start_s + 5)
        answered(trace)

    run = make_run(also_later).data()
    assert figures_of(run.requests, run.spans, []).cost_per_1000_usd == pytest.approx(7.0)


def test_one_call_of_unknown_price_makes_the_cost_unknown() -> None:
    """A sum that leaves something out is not a cost."""
    run = RunMaker()
    answered(run.trace(0, 1.0))
    other = run.trace(1, 2.0)
    other.llm("answer", 1.0, model="in-house-7b")
    other.answer()
    assert figures_of(run.requests, run.spans, []).cost_per_1000_usd is None


def test_swallowed_failures_are_a_share_of_requests() -> None:
    """A retriever that failed below an answer nobody complained about."""
    run = RunMaker()
    for index in range(4):
        trace = run.trace(index, index + 1.0)
        trace.db("retrieve", 0.01, error="NotFoundError" if index == 0 else None)
        trace.answer()
    assert figures_of(run.requests, run.spans, []).swallowed_failure_ratio == 0.25
    run = make_run(answered, style=GATEWAY_ONLY)
    assert figures_of(run.requests, run.spans, []).swallowed_failure_ratio is None


def two_scenarios() -> RunData:
    run = RunMaker(scenario="cold")
    for index in range(3):
        answered(run.trace(index, index + 1.0))
    run.scenario = "warm"
    for index in range(3, 5):
        answered(run.trace(index, index + 10.0))
    for tick in range(80):
        run.sample(tick / 4, rss_mb=200 if tick < 40 else 400)
    return run.data()


def test_a_scenario_keeps_its_requests_traces_and_time() -> None:
    """Nothing of another scenario's load is left."""
    run = two_scenarios()
    cold = run.scenario("cold")
    assert run.scenario_names == ["cold", "warm"]
    assert len(cold.requests) == 3
    assert {s.trace_id for s in cold.spans} == {r.trace_id for r in cold.requests}
    assert max(r.rss_bytes for r in cold.resources) == 200_000_000
    assert [s.name for s in cold.info.scenarios] == ["cold"]
    assert (
        figures_of(run.requests, run.spans, run.resources, info=ScenarioInfo(name="warm", model="open")).requests == 2
    )


def test_an_unknown_scenario_is_refused_with_the_known_ones() -> None:
    """The message helps."""
    with pytest.raises(ValueError, match="scenarios with requests: cold, warm"):
        two_scenarios().scenario("hot")
