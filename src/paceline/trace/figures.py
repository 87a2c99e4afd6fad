"""The figures of a run: what W2.2 asks for, from requests, spans and resource samples."""

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from paceline.model.figures import Figures
from paceline.model.request import Request, ResourceSample
from paceline.model.run import ScenarioInfo
from paceline.model.span import LLM, Span
from paceline.stats.leak import leak_verdict
from paceline.stats.quantiles import quantile_interval, quantiles
from paceline.trace.calls import GATEWAY, SAVED
from paceline.trace.failures import swallowed_failures
from paceline.trace.processor import busy_ratio
from paceline.trace.streaming import Bound, is_good, streaming_parts
from paceline.trace.tree import Trace, build_traces

APP = "app"
_MB = 1e6

Value = float | str | tuple[float, float] | None


def figures_of(
    requests: Sequence[Request],
    spans: Sequence[Span],
    resources: Sequence[ResourceSample],
    *,
    info: ScenarioInfo | None = None,
    bounds: Sequence[Bound] = (),
) -> Figures:
    """The figures of these requests; with `info`, only of that scenario's; with `bounds`, goodput too.

    Latency counts from the intended start, over the requests that were answered and those that timed out (with the
    time they had waited); other failures show in `success_ratio` and `errors`. Cost is that of every provider call
    of the requests' traces, work after the answer included, and unknown when one call's is. Intervals have 95 %
    confidence and are None when the samples are too few for a bound.
    """
    if info is not None:
        requests = [r for r in requests if r.scenario == info.name]
    return figures_of_traces([t for t in build_traces(spans, requests) if t.request], resources, bounds)


def figures_of_traces(
    traces: Sequence[Trace], resources: Sequence[ResourceSample], bounds: Sequence[Bound] = ()
) -> Figures:
    """`figures_of` for traces built before; those nobody requested are left out."""
    traces = [t for t in traces if t.request is not None]
    requests = [t.request for t in traces if t.request is not None]
    if not requests:
        return Figures(requests=0, duration_s=0.0)
    start_s = min(r.intended_s for r in requests)
    end_s = max(r.ended_s for r in requests)
    duration_s = end_s - start_s
    ok = sum(r.ok for r in requests)
    requests_per_s = ok / duration_s if duration_s > 0 else None
    figures = Figures(
        requests=len(requests),
        duration_s=duration_s,
        requests_per_s=requests_per_s,
        success_ratio=ok / len(requests),
        errors=dict(sorted(Counter(_error_name(r) for r in requests if not r.ok).items())),
    )
    found = _latencies(requests) | _streams(requests) | _spent(traces)
    found |= resource_figures(resources, start_s, end_s, requests_per_s)
    if bounds:
        good = sum(is_good(r, bounds) for r in requests)
        found |= {"goodput_ratio": good / len(requests), "goodput_per_s": good / duration_s if duration_s > 0 else None}
    return msgspec.structs.replace(figures, **found)


def _latencies(requests: list[Request]) -> dict[str, Value]:
    timed = [r for r in requests if r.ok or r.error == "timeout"]
    says = [r for r in requests if r.cache is not None]
    found: dict[str, Value] = {"hit_ratio": sum(r.cache in SAVED for r in says) / len(says) if says else None}
    if not timed:
        return found
    latencies = [r.latency_s for r in timed]
    p50, p95, p99 = quantiles(latencies, [0.5, 0.95, 0.99])
    found |= {"mean_s": math.fsum(latencies) / len(latencies), "p50_s": p50, "p95_s": p95, "p99_s": p99}
    found |= {"max_s": max(latencies)}
    found |= {"p50_interval_s": _interval(latencies, 0.5), "p95_interval_s": _interval(latencies, 0.95)}
    found |= {"p99_interval_s": _interval(latencies, 0.99)}
    parts = {
        "cached": [r.latency_s for r in timed if r.cache in SAVED],
        "uncached": [r.latency_s for r in timed if r.cache is not None and r.cache not in SAVED],
        "first_byte": [r.first_byte_s - r.intended_s for r in timed if r.first_byte_s is not None],
    }
    for name, samples in parts.items():
        if samples:
            found[f"{name}_p50_s"], found[f"{name}_p95_s"] = quantiles(samples, [0.5, 0.95])
    return found


def _streams(requests: list[Request]) -> dict[str, Value]:
    """What readers of streamed answers wait for; nothing where none streamed."""
    parts = streaming_parts(requests)
    whole = parts.get("all")
    if whole is None:
        return {}
    found: dict[str, Value] = {"tokens_per_s": whole.output_tokens_per_s}
    if whole.tokens_per_s is not None:
        found["tokens_p50_per_s"] = whole.tokens_per_s.p50
    spreads = {
        "first_token": whole.first_token,
        "token_gap": whole.token_gap,
        "mean_gap": whole.mean_gap,
        "time_per_token": whole.time_per_token,
    }
    for name, spread in spreads.items():
        if spread is not None:
            found |= {f"{name}_p50_s": spread.p50, f"{name}_p95_s": spread.p95, f"{name}_p99_s": spread.p99}
    for name in ("cached", "uncached"):
        if name in parts and (first := parts[name].first_token) is not None:
            found |= {f"{name}_first_token_p50_s": first.p50, f"{name}_first_token_p95_s": first.p95}
    return found


def _spent(traces: Sequence[Trace]) -> dict[str, Value]:
    """Money, calls and hidden failures per request; without spans, the money that answers stated if all did."""
    if not any(t.spans for t in traces):
        stated = [0.0 if r.cache in SAVED else r.cost_usd for t in traces if (r := t.request) is not None and r.ok]
        given = [cost for cost in stated if cost is not None]
        states = any(t.request is not None and t.request.cost_usd is not None for t in traces)
        whole = states and len(given) == len(stated)  # what failed and states nothing was not billed
        return {"cost_per_1000_usd": math.fsum(given) / len(traces) * 1000} if whole else {}
    calls = [c for t in traces for c in t.calls if c.to_provider]
    costs = [c.cost_usd for c in calls]
    known = [c for c in costs if c is not None]
    asked = sum(c.kind == LLM and c.cache not in SAVED for c in calls)
    instrumented = any(s.service != GATEWAY for t in traces for s in t.spans[:1])
    hidden = sum(bool(swallowed_failures(t)) for t in traces)
    return {
        "cost_per_1000_usd": math.fsum(known) / len(traces) * 1000 if len(known) == len(costs) else None,
        "llm_calls_per_request": asked / len(traces),
        "swallowed_failure_ratio": hidden / len(traces) if instrumented else None,
    }


def resource_figures(
    resources: Sequence[ResourceSample], start_s: float, end_s: float, requests_per_s: float | None
) -> dict[str, Value]:
    """Memory (peak, growth, verdict) and processor of the service between two times; nothing where not sampled."""
    during = sorted((r for r in resources if r.service == APP and start_s <= r.at_s <= end_s), key=lambda r: r.at_s)
    if not during:
        return {}
    verdict = leak_verdict([r.at_s for r in during], [r.rss_bytes for r in during], requests_per_s=requests_per_s)
    growth = verdict.mb_per_1000_requests
    return {
        "memory_mb": max(r.rss_bytes for r in during) / _MB,
        # Memory that falls at the end of the load does not grow.
        "memory_growth_mb_per_1000": None if growth is None else max(0.0, growth),
        "memory_verdict": verdict.verdict,
        "processor_busy_ratio": busy_ratio(during),
    }


def _interval(samples: list[float], q: float) -> tuple[float, float] | None:
    interval = quantile_interval(samples, q)
    return (interval.low, interval.high) if math.isfinite(interval.low) and math.isfinite(interval.high) else None


def _error_name(request: Request) -> str:
    error = request.error or "error"
    return f"{error} {request.status}" if error == "status" and request.status else error
