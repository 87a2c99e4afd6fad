"""View: a run prepared once for all rules: its traces, the critical path in every call, and what the run comes to."""

import heapq
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from paceline.model.finding import Evidence, Where
from paceline.model.request import ResourceSample
from paceline.model.span import LLM, USED_IN_RESPONSE, USES
from paceline.trace.calls import SAVED, Call
from paceline.trace.data import RunData
from paceline.trace.tree import Trace, build_traces, call_seconds

EXAMPLES = 10


class Seen(NamedTuple):
    """A call where it happened: in which trace, and its seconds on the critical path there."""

    trace: Trace
    call: Call
    path_s: float


@dataclass(frozen=True, slots=True)
class View:
    """What the rules look at. `traces` are the requests that savings are a mean over."""

    traces: list[Trace]
    calls: list[list[Seen]]  # per trace, in order of start
    resources: list[ResourceSample]
    mean_s: float  # response time of the traces
    cost_usd: float  # of all traces, known costs only
    speed: float  # how many times faster than real the run was; its times are at the provider's pace
    knows_flow: bool  # the recorder saw which outputs were used where

    @property
    def requests(self) -> int:
        """How many requests there are, at least 1 so that it can divide."""
        return max(1, len(self.traces))

    def steps(self, *, kind: str | None = LLM) -> dict[str, list[Seen]]:
        """Calls by step, in order of time; `kind` None for all kinds."""
        by_step: defaultdict[str, list[Seen]] = defaultdict(list)
        for seen in self.all_calls(kind=kind):
            by_step[seen.call.step].append(seen)
        return dict(sorted(by_step.items()))

    def all_calls(self, *, kind: str | None = LLM) -> Iterable[Seen]:
        """Every call of that kind."""
        return (seen for calls in self.calls for seen in calls if kind is None or seen.call.kind == kind)

    def per_1000(self, usd: float) -> float:
        """A sum of dollars over the run as dollars per 1,000 requests."""
        return usd / self.requests * 1000

    def per_request(self, seconds: Iterable[float]) -> float:
        """A sum of seconds over the run as a mean over all requests."""
        return math.fsum(seconds) / self.requests


def view_of(run: RunData) -> View:
    """Prepare a run. With requests, their traces; without a load driver, those the application served; else all."""
    traces = build_traces(run.spans, run.requests)
    if run.requests:
        traces = [t for t in traces if t.request is not None]
    elif any(t.root for t in traces):
        traces = [t for t in traces if t.root]
    calls = []
    for trace in traces:
        seconds = call_seconds(trace) if trace.calls else {}
        calls.append([Seen(trace, call, seconds.get(call.span_id, 0.0)) for call in trace.calls])
    return View(
        traces=traces,
        calls=calls,
        resources=sorted((r for r in run.resources if r.service == "app"), key=lambda r: r.at_s),
        mean_s=math.fsum(t.duration_s for t in traces) / max(1, len(traces)),
        cost_usd=math.fsum(c.cost_usd or 0.0 for t in traces for c in t.calls),
        speed=run.info.speed,
        knows_flow=any(USES in s.attributes or USED_IN_RESPONSE in s.attributes for t in traces for s in t.spans),
    )


def where(seen: Sequence[Seen]) -> Where:
    """The place most of these calls have in common."""
    call = seen[0].call
    endpoints = {endpoint(s.trace) for s in seen}
    return Where(
        endpoint=endpoints.pop() if len(endpoints) == 1 else None,
        step=call.step,
        code=commonest(s.call.code for s in seen),
        model=commonest(s.call.model for s in seen),
        fingerprint=commonest(s.call.fingerprint for s in seen),
    )


def evidence(seen: Sequence[Seen], count: int, of: int, facts: dict[str, float | int | str]) -> Evidence:
    """Evidence with the earliest of these calls as examples."""
    examples = heapq.nsmallest(EXAMPLES, seen, key=lambda s: (s.call.start_ns, s.call.span_id))
    return Evidence(
        span_ids=[s.call.span_id for s in examples],
        trace_ids=list(dict.fromkeys(s.trace.trace_id for s in examples)),
        count=count,
        of=of,
        facts={name: round(value, 6) if isinstance(value, float) else value for name, value in facts.items()},
    )


def endpoint(trace: Trace) -> str | None:
    """The endpoint a trace belongs to: as the load driver, else as the application calls it."""
    if trace.request is not None:
        return trace.request.endpoint
    return trace.root.name if trace.root is not None else None


def commonest(values: Iterable[str | None]) -> str | None:
    """The value seen most often, None left out; of equals the first in the alphabet."""
    counts = Counter(values)
    counts.pop(None, None)
    return min((v for v in counts if v is not None), key=lambda v: (-counts[v], v), default=None)


def mean(values: Iterable[float]) -> float:
    """Mean, 0 for nothing."""
    known = list(values)
    return math.fsum(known) / len(known) if known else 0.0


def median_of(values: Iterable[int | None]) -> float | None:
    """Median of the known values, None without any."""
    known = [v for v in values if v is not None]
    return statistics.median(known) if known else None


def surer(confidence: float, count: int) -> float:
    """Confidence after `count` sightings: half of it for the first, nearly all from ten on."""
    return round(confidence * (0.5 + 0.5 * min(1.0, count / 10)), 2)


def asked(seen: Seen) -> bool:
    """True when the provider was really asked: neither from a cache nor shared with a call in flight."""
    return seen.call.cache not in SAVED
