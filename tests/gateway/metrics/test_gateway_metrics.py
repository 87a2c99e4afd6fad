"""Counts of calls: right, bounded, added up over processes, readable by Prometheus."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.gateway.builders import CHAT, COST_USD, JSON, PLAIN, SHARING, STREAM
from tests.gateway.keyed import bearer, keyed, make
from tests.patience import PATIENCE_S
from tests.wire.builders import Step, answer, ok, run

from paceline.accelerate.asked import Asked
from paceline.accelerate.engine import Engine
from paceline.accelerate.limits.policy import LimitsPolicy
from paceline.accelerate.record import CallRecord
from paceline.clock import FakeClock
from paceline.gateway.metrics.counts import MAX_NAMES, MAX_SERIES, OTHER, Metrics, Snapshot, merged
from paceline.gateway.metrics.engine import EngineMetrics
from paceline.gateway.metrics.shared import WRITE_S, SharedMetrics
from paceline.gateway.metrics.text import cost_rows, label, prometheus_text
from paceline.wire.call import LLM, CallInfo, Usage
from paceline.wire.client import HttpClient
from paceline.wire.openai import OPENAI

EMBEDDINGS = b'{"data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 7, "total_tokens": 7}}'


def call(
    model: str = "gpt-4o-mini",
    *,
    step: str | None = None,
    outcome: str = "miss",
    ms: float = 5.0,
    cost_usd: float | None = 0.5,
    error: str | None = None,
) -> CallRecord:
    """A finished call, not told to anybody."""
    record = CallRecord(lambda _: None, FakeClock(), "POST", CHAT, LLM, None, FakeClock().now_ns())
    record.asked = Asked(
        dialect=OPENAI,
        info=CallInfo(kind=LLM, model=model),
        target=CHAT,
        body=b"",
        tenant=b"",
        key=None,
        attributes={},
    )
    record.step, record.outcome, record.status, record.error = step, outcome, 200, error
    record.end_ns = record.start_ns + round(ms * 1e6)
    if outcome == "hit":
        record.cost_usd, record.saved_usd = 0.0, cost_usd
    else:
        record.usage, record.cost_usd = Usage(input_tokens=100, output_tokens=20, cached_tokens=30), cost_usd
    return record


def values(text: bytes) -> dict[str, float]:
    """Every line of the page: name with labels -> value."""
    lines = [line for line in text.decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_the_page_tells_what_happened() -> None:
    """Real calls through the gateway: outcomes, tokens, money, durations, refusals, by key and step."""
    alice, alice_key = make("alice", tenant="acme")
    monitor, monitor_key = make("prometheus", role="monitor")
    busy: list[Step] = [answer(429, b'{"error": {"code": "insufficient_quota"}}', JSON)]

    unknown = [s.replace(b"gpt-4o-mini", b"house-model") if isinstance(s, bytes) else s for s in STREAM]

    async def main() -> tuple[bytes, dict[str, Any]]:
        async with keyed(
            [alice_key, monitor_key], scripts=[PLAIN, unknown, [ok(EMBEDDINGS, JSON)], busy], policy=SHARING
        ) as g:
            step = (b"x-paceline-step", b"answer")
            body = msgspec.json.encode({"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "q"}]})
            for _ in range(3):
                await g.send("POST", CHAT, bearer(alice), step, body=body)
            await g.ask(alice, stream=True, model="house-model")
            await g.send("POST", "/v1/embeddings", bearer(alice), body=b'{"model": "e", "input": "x"}')
            await g.ask(alice, "too much")
            await g.ask("pl_00000000_x")
            _, page = await g.send("GET", "/metrics", bearer(monitor))
            _, costs = await g.send("GET", "/-/costs", bearer(monitor))
            return page, json.loads(costs)

    page, costs = run(main())
    seen = values(page)
    who = 'tenant="acme",key="alice",model="gpt-4o-mini",step="answer"'
    assert seen[f'paceline_calls_total{{{who},outcome="miss",level="",error=""}}'] == 1
    assert seen[f'paceline_calls_total{{{who},outcome="hit",level="memory",error=""}}'] == 2
    spent = 'tenant="acme",key="alice",model="gpt-4o-mini",served_model="gpt-4o-mini",step="answer"'
    assert seen[f"paceline_cost_usd_total{{{spent}}}"] == pytest.approx(COST_USD)
    assert seen[f"paceline_saved_usd_total{{{who}}}"] == pytest.approx(2 * COST_USD)
    assert seen[f"paceline_input_tokens_total{{{who}}}"] == 1000
    assert seen[f"paceline_output_tokens_total{{{who}}}"] == 500
    house = 'tenant="acme",key="alice",model="house-model",step=""'
    assert seen[f"paceline_unpriced_calls_total{{{house}}}"] == 1
    assert not [name for name, value in seen.items() if "cost_usd_total" in name and "house-model" in name and value]
    assert seen['paceline_estimated_calls_total{model="house-model"}'] == 1
    asked = 'gen_ai_operation_name="chat",gen_ai_provider_name="openai",gen_ai_request_model="gpt-4o-mini"'
    duration = "gen_ai_client_operation_duration_seconds"
    assert seen[f'{duration}_count{{{asked},outcome="hit",error_type=""}}'] == 2
    assert seen[f'{duration}_count{{{asked},outcome="miss",error_type="429"}}'] == 1
    assert seen[f'gen_ai_client_token_usage_sum{{{asked},gen_ai_token_type="input"}}'] == 1000
    first = "gen_ai_client_operation_time_to_first_chunk_seconds_count"
    assert seen[f"{first}{{{asked.replace('gpt-4o-mini', 'house-model')}}}"] == 1
    assert seen['paceline_refusals_total{status="401",code="invalid_api_key",key=""}'] == 1
    assert b'gen_ai_operation_name="embeddings"' in page
    assert alice.encode() not in page

    assert (costs["calls"], costs["unpriced_calls"]) == (6, 2)  # "e" has no price either
    assert costs["cost_usd"] == pytest.approx(COST_USD)
    row = next(row for row in costs["rows"] if row["step"] == "answer")
    assert (row["tenant"], row["calls"], row["hits"], row["input_tokens"]) == ("acme", 3, 2, 1000)


@pytest.mark.system
@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_accepts_the_page() -> None:
    """Format, names, help, buckets, escaped labels, as promtool checks them."""
    metrics = Metrics()
    for outcome in ("hit", "miss"):
        metrics.take(call('quote" back\\slash', step="new\nline", outcome=outcome))
    metrics.count("paceline_refusals_total", label("status", "401"))
    metrics.gauges = lambda: {"paceline_workers": {"": 2.0}}
    page = prometheus_text(metrics.snapshot())
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=page, capture_output=True, timeout=PATIENCE_S, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_what_the_engine_holds_is_on_the_page() -> None:
    """Connections, limits, cache levels; what a cache counted goes on when another one takes its place."""
    presented, key = make()
    policy = msgspec.structs.replace(SHARING, limits=LimitsPolicy(concurrency=5))

    async def main() -> tuple[bytes, bytes]:
        async with keyed([key], *PLAIN, policy=policy) as g:
            of_engine = EngineMetrics(lambda: g.gateway.engine, g.metrics, now_s=lambda: 0.0)
            g.metrics.gauges = of_engine.gauges
            for _ in range(3):
                await g.ask(presented)
            first = prometheus_text(g.metrics.snapshot())
            forward, door = HttpClient(g.upstream.url), g.gateway.door
            g.gateway.serve_with(Engine(forward, policy, listener=g.metrics.take), door)
            await g.ask(presented)
            second = prometheus_text(g.metrics.snapshot())
            await g.gateway.engine.close()
            await forward.close()
            return first, second

    first, second = (values(page) for page in run(main()))
    hits, puts = (f'paceline_cache_events_total{{level="memory",event="{event}"}}' for event in ("hits", "puts"))
    assert (first[hits], first[puts]) == (2, 1)
    assert (second[hits], second[puts]) == (2, 2)
    for page in (first, second):
        assert page['paceline_cache_entries{level="memory"}'] == 1
        assert page['paceline_cache_bytes{level="memory"}'] > 0
        assert page['paceline_upstream_connections{state="idle"}'] == 1
        assert page['paceline_limit_waiting_calls{model="gpt-4o-mini"}'] == 0
        assert page["paceline_in_flight_calls"] == 0


def test_buckets_are_cumulative_and_end_with_all() -> None:
    metrics = Metrics()
    for ms in (5.0, 15.0, 15.0, 1e6):
        metrics.take(call(ms=ms))
    name = "gen_ai_client_operation_duration_seconds_bucket"
    found = [(key, value) for key, value in values(prometheus_text(metrics.snapshot())).items() if key.startswith(name)]
    buckets = {match[1]: value for key, value in found if (match := re.search(r'le="(.+)"', key)) is not None}
    assert (buckets["0.01"], buckets["0.02"], buckets["81.92"], buckets["+Inf"]) == (1, 3, 3, 4)
    assert list(buckets.values()) == sorted(buckets.values())


def test_names_are_bounded_and_nothing_is_lost() -> None:
    """However many models and steps callers make up, the page stays small, and its sums right."""
    metrics, calls = Metrics(), 0
    for i in range(150):
        for j in range(150):
            metrics.take(call(f"model-{i}", step=f"step-{j}" + "x" * 1000))
            calls += 1
    snapshot = metrics.snapshot()
    assert len(snapshot.series) <= MAX_SERIES + 1
    assert len({series.names.model for series in snapshot.series}) <= MAX_NAMES + 1
    assert OTHER in {series.names.model for series in snapshot.series}
    assert sum(series.calls for series in snapshot.series) == calls
    assert max(len(series.names.step) for series in snapshot.series) <= 100
    assert len(metrics._memo) <= 10_000


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["hit", "miss"]), st.floats(0, 1e5)), max_size=40))
def test_merging_processes_equals_counting_everything_in_one(calls: list[tuple[str, str, float]]) -> None:
    """Through the form that is written to files."""
    one, parts = Metrics(now_s=lambda: 1.0), [Metrics(now_s=lambda: 1.0) for _ in range(3)]
    for i, (model, outcome, ms) in enumerate(calls):
        for metrics in (one, parts[i % 3]):
            metrics.take(call(model, outcome=outcome, ms=ms))
    files = [msgspec.msgpack.encode(part.snapshot()) for part in parts]
    whole = merged([msgspec.msgpack.decode(data, type=Snapshot) for data in files], now_s=1.0, fresh_s=3.0)
    alone = one.snapshot()

    def comparable(snapshot: Snapshot) -> list[tuple[object, ...]]:
        return sorted(
            (row.model, row.calls, row.hits, row.input_tokens, round(row.cost_usd, 9), round(row.saved_usd, 9))
            for row in cost_rows(snapshot)
        )

    assert comparable(whole) == comparable(alone)
    durations = [sorted(tuple(series.seconds.counts) for series in s.series) for s in (whole, alone)]
    assert durations[0] == durations[1]


def test_what_was_shown_never_becomes_less(tmp_path: Path) -> None:
    """A process is asked, killed before it writes again, replaced; the others are asked. Its gauges end with it."""
    now = [0.0]

    def process(number: int) -> SharedMetrics:
        shared = SharedMetrics(Metrics(now_s=lambda: now[0]), tmp_path, number, now_s=lambda: now[0])
        shared.resume()
        shared.metrics.gauges = lambda: {"paceline_workers": {"": 1.0}}
        return shared

    def shown(shared: SharedMetrics) -> tuple[int, float]:
        snapshot = shared.whole()
        return sum(series.calls for series in snapshot.series), snapshot.gauges["paceline_workers"][""]

    first, second = process(0), process(1)
    now[0] += 10 * WRITE_S
    second.write()
    for _ in range(5):
        first.metrics.take(call())
    assert shown(first) == (5, 2.0)
    first.metrics.take(call())  # never written
    now[0] += 10 * WRITE_S
    assert shown(second) == (5, 1.0)
    successor = process(0)
    successor.metrics.take(call())
    assert shown(successor) == (6, 2.0)
    assert shown(second) == (6, 2.0)


def test_a_folder_that_is_gone_costs_the_others_only(tmp_path: Path) -> None:
    """Metrics of this process go on; nothing is raised."""
    folder = tmp_path / "gone"
    folder.mkdir()
    shared = SharedMetrics(Metrics(), folder, 0)
    folder.rmdir()
    shared.metrics.take(call())
    assert sum(series.calls for series in shared.whole().series) == 1


def test_what_failed_before_an_answer_counts_no_tokens() -> None:
    record = call(error="upstream_timeout", cost_usd=None)
    record.usage = None
    metrics = Metrics()
    metrics.take(record)
    (series,) = metrics.snapshot().series
    assert (series.names.error, series.unpriced, series.input_tokens.total) == ("upstream_timeout", 1, 0.0)
