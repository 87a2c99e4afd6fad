"""Every request takes a thread and the memory that goes with it, so memory follows the load.

Rule, on the application's resource samples: the number of threads follows the requests in flight (correlation at
least 0.8, at least 0.5 threads each, at least 30 threads above the quietest moment), memory does too with at least
1 MB each, and the threads (or the memory) fall back by at least a quarter of their rise once the load is gone, where
the recording shows that.

Thresholds are ours: 30 threads are beyond any fixed pool's jitter, 1 MB is more than a coroutine and a connection
need. Requests in flight are those of the moment or the most of the last 10 s of real time, whichever the threads
follow better: some pools (anyio's among them) keep idle threads for 10 s.

Assumptions: memory beside the load is constant, so the slope is what one request holds. Wrong where something else
grows with the load in the same seconds (a cache filling up); memory that never falls back is a leak, not this. The
saving assumes that at most 40 requests (anyio's and Starlette's own default of threads) hold memory at the peak.
"""

import math
import statistics
from bisect import bisect_right
from collections.abc import Sequence

from paceline.diagnose.view import View, commonest, endpoint, evidence
from paceline.model.change import Limit
from paceline.model.estimate import Range
from paceline.model.finding import Finding, Saving, Where
from paceline.model.request import ResourceSample
from paceline.trace.tree import Trace

RULE = "thread_memory_spike"
LEAST_CORRELATION = 0.8
LEAST_THREADS_EACH = 0.5
LEAST_RISE = 30
LEAST_MB_EACH = 1.0
LEAST_SAMPLES = 8
KEPT_THREADS = 40
_FALL_BACK = 0.25
_IDLE_S = 10.0
_MB = 1e6
# What a request in flight holds on one event loop, over what it held with a thread and clients of its own.
_ON_ONE_LOOP = Range(0.05, 0.4)


def thread_memory_spike(view: View) -> list[Finding]:
    """At most one finding."""
    flights = _flights(view.traces)
    if not flights:
        return []
    # A service that is still starting, or has stopped, has neither its threads nor its memory.
    ready_s = flights[0][0] - view.speed
    samples = [r for r in view.resources if r.at_s >= ready_s and r.rss_bytes >= _MB]
    if len(samples) < LEAST_SAMPLES:
        return []
    now = [_in_flight(flights, r.at_s) for r in samples]
    threads = [float(r.threads) for r in samples]
    memory = [r.rss_bytes / _MB for r in samples]
    if max(threads) - min(threads) < LEAST_RISE or max(now) == min(now):
        return []
    loads = [load for load in (now, _most_recently(now, samples, _IDLE_S * view.speed)) if max(load) > min(load)]
    together, load = max((statistics.correlation(load, threads), load) for load in loads)
    each, mb_each = _slope(load, threads), _slope(load, memory)
    if together < LEAST_CORRELATION or each < LEAST_THREADS_EACH or mb_each < LEAST_MB_EACH:
        return []
    if not (_falls_back(load, threads) or _falls_back(load, memory)):
        return []
    return [_finding(view, load, threads, memory, (together, each, mb_each))]


def _finding(
    view: View, load: list[float], threads: list[float], memory: list[float], fit: tuple[float, float, float]
) -> Finding:
    together, each, mb_each = fit
    peak = max(load)
    size = KEPT_THREADS if peak > KEPT_THREADS else max(1, math.ceil(peak / 2))
    spared = min(mb_each * (peak - size), max(memory) - min(memory))
    busy = [seen for calls in view.calls for seen in calls]
    endpoints = {endpoint(t) for t in view.traces}
    facts: dict[str, float | int | str] = {
        "threads_peak": int(max(threads)),
        "threads_least": int(min(threads)),
        "in_flight_peak": int(peak),
        "correlation": together,
        "threads_per_request_in_flight": each,
        "mb_per_request_in_flight": mb_each,
        "memory_peak_mb": max(memory),
        "memory_least_mb": min(memory),
        "assumed_threads": size,
    }
    return Finding(
        rule=RULE,
        title=f"threads rise from {min(threads):.0f} to {max(threads):.0f} with the requests in flight, "
        f"and memory by {mb_each:.1f} MB each",
        where=Where(
            endpoint=endpoints.pop() if len(endpoints) == 1 else None, code=commonest(s.call.code for s in busy[:100])
        ),
        evidence=evidence(busy, int(peak), len(view.traces), facts),
        critical_path_s=0.0,
        saving=Saving(memory_mb=max(0.0, spared)),
        confidence=round(min(0.95, together), 2),
        remedy="Answer on one event loop with one shared client (async calls, one pool of connections); or bound the "
        f"threads to about {size} and share clients and data between them.",
        change=Limit(resource="threads", size=size, memory_ratio=_ON_ONE_LOOP),
    )


def _flights(traces: Sequence[Trace]) -> tuple[list[float], list[float]] | None:
    """Sorted starts and ends of the requests, seconds of the run; None without a load driver."""
    requests = [t.request for t in traces if t.request is not None]
    if not requests:
        return None  # spans alone don't say when the run began, so samples can't be matched
    return sorted(r.started_s for r in requests), sorted(r.ended_s for r in requests)


def _in_flight(flights: tuple[list[float], list[float]], at_s: float) -> float:
    starts, ends = flights
    return float(bisect_right(starts, at_s) - bisect_right(ends, at_s))


def _most_recently(load: list[float], samples: Sequence[ResourceSample], within_s: float) -> list[float]:
    """The most requests in flight within the last seconds of each sample."""
    most, first = [], 0
    for index, sample in enumerate(samples):
        while samples[first].at_s < sample.at_s - within_s:
            first += 1
        most.append(max(load[first : index + 1]))
    return most


def _slope(xs: list[float], ys: list[float]) -> float:
    """Least squares: how much y rises with one more x."""
    return statistics.linear_regression(xs, ys).slope


def _falls_back(load: list[float], values: list[float]) -> bool:
    """False only when the load is seen to fall to a quarter of its peak without the values following."""
    peak = max(load)
    peak_at = load.index(peak)
    after = [v for v, x in zip(values[peak_at:], load[peak_at:], strict=True) if x <= peak / 4]
    if not after:
        return True
    highest = max(values)
    return highest - min(after) >= _FALL_BACK * (highest - min(values))
