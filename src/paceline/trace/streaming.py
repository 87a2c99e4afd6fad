"""Figures of streamed answers, and goodput: the requests that meet every bound.

The words differ between tools, so the formulas are named here. With `e2e` from the intended start to the last byte,
`ttft` from the intended start to the first event that carries a token, and gaps between such events:

    time per token   (e2e - ttft) / (tokens - 1)      one value a request; "TPOT" of vLLM's benchmark
    mean gap         mean of the request's gaps       one value a request; "ITL" of GuideLLM and AIPerf
    token gap        every single gap, pooled         what a reader sees as stutter; means hide it
    tokens/s         tokens / e2e, one value a request; total: tokens of all requests over the time they took together
"""

import math
from collections.abc import Callable, Sequence

import msgspec

from paceline.model.figures import Objective
from paceline.model.request import Request
from paceline.stats.quantiles import quantiles
from paceline.trace.calls import SAVED

Measure = Callable[[Request], float | None]


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """How one measure is spread over the requests (or, for token gaps, over all gaps)."""

    n: int
    p50: float
    p95: float
    p99: float
    max: float


class StreamingFigures(msgspec.Struct, frozen=True, kw_only=True):
    """Streamed answers of some requests. None: nothing of the kind was measured. Seconds and tokens per second."""

    requests: int  # that streamed and were answered
    first_token: Spread | None = None
    token_gap: Spread | None = None  # every gap of every request, pooled
    mean_gap: Spread | None = None  # per request
    time_per_token: Spread | None = None  # per request: (e2e - ttft) / (tokens - 1)
    tokens_per_s: Spread | None = None  # per request: tokens / e2e
    output_tokens: int = 0
    output_tokens_per_s: float | None = None  # of all requests together


def streamed(request: Request) -> bool:
    """True when its answer came as events."""
    return request.first_token_s is not None or bool(request.gaps_s)


def first_token_s(request: Request) -> float | None:
    """Seconds from the intended start to the first token; None when it did not stream.

    Runs written before first tokens were recorded have the first byte instead.
    """
    if not streamed(request):
        return None
    first_s = request.first_byte_s if request.first_token_s is None else request.first_token_s
    return None if first_s is None else first_s - request.intended_s


def output_tokens(request: Request) -> int | None:
    """What the stream stated, else its events with tokens; None when it did not stream."""
    if request.output_tokens is not None:
        return request.output_tokens
    return len(request.gaps_s) + 1 if streamed(request) else None


def time_per_token_s(request: Request) -> float | None:
    """(e2e - ttft) / (tokens - 1); None for fewer than two tokens or no stream."""
    first_s, tokens = first_token_s(request), output_tokens(request)
    if first_s is None or tokens is None or tokens < 2:
        return None
    return (request.latency_s - first_s) / (tokens - 1)


def mean_gap_s(request: Request) -> float | None:
    """The mean of its gaps."""
    return math.fsum(request.gaps_s) / len(request.gaps_s) if request.gaps_s else None


def max_gap_s(request: Request) -> float | None:
    """The longest of its gaps: how long the text stood still."""
    return max(request.gaps_s, default=None)


def tokens_per_s(request: Request) -> float | None:
    """Tokens over the whole time from the intended start."""
    tokens = output_tokens(request)
    return None if tokens is None or request.latency_s <= 0 else tokens / request.latency_s


def streaming_figures(requests: Sequence[Request]) -> StreamingFigures | None:
    """The figures of those that streamed and were answered; None when none did."""
    part = [r for r in requests if r.ok and streamed(r)]
    if not part:
        return None
    tokens = sum(output_tokens(r) or 0 for r in part)
    duration_s = max(r.ended_s for r in part) - min(r.intended_s for r in part)
    return StreamingFigures(
        requests=len(part),
        first_token=_over(part, first_token_s),
        token_gap=_spread([gap for r in part for gap in r.gaps_s]),
        mean_gap=_over(part, mean_gap_s),
        time_per_token=_over(part, time_per_token_s),
        tokens_per_s=_over(part, tokens_per_s),
        output_tokens=tokens,
        output_tokens_per_s=tokens / duration_s if duration_s > 0 else None,
    )


def streaming_parts(requests: Sequence[Request]) -> dict[str, StreamingFigures]:
    """All requests, and cached and uncached apart where answers say so; parts that did not stream are left out.

    The rows of a table: a replayed answer has no gaps worth the name, and mixed with real ones it hides theirs.
    """
    parts = {"all": list(requests)}
    if any(r.cache is not None for r in requests):
        parts["cached"] = [r for r in requests if r.cache in SAVED]
        parts["uncached"] = [r for r in requests if r.cache is not None and r.cache not in SAVED]
    found = {name: streaming_figures(part) for name, part in parts.items()}
    return {name: figures for name, figures in found.items() if figures is not None}


class Bound(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The most one request may take: `measure` is a name of MEASURES."""

    measure: str
    limit_s: float

    def __post_init__(self) -> None:
        if self.measure not in MEASURES or not self.limit_s > 0:
            msg = f"a bound is one of {', '.join(MEASURES)} and above 0; got {self.measure} {self.limit_s:g}"
            raise ValueError(msg)


MEASURES: dict[str, Measure] = {
    "latency_s": lambda request: request.latency_s,
    "first_token_s": first_token_s,
    "time_per_token_s": time_per_token_s,
    "mean_gap_s": mean_gap_s,
    "max_gap_s": max_gap_s,
}
_BOUNDED = {  # how the name of a figure begins, and the measure of a request it is the quantile of
    "first_token_": "first_token_s",
    "time_per_token_": "time_per_token_s",
    "mean_gap_": "mean_gap_s",
    "token_gap_": "max_gap_s",
}
_LATENCIES = ("mean_s", "p50_s", "p95_s", "p99_s", "max_s")


def parse_bound(text: str) -> Bound:
    """`first_token_s<0.5` or `latency_s <= 2`. Raises ValueError."""
    measure, less, limit = text.partition("<")
    try:
        limit_s = float(limit.removeprefix("=")) if less else math.nan
    except ValueError:
        limit_s = math.nan
    if not math.isfinite(limit_s):
        msg = f"a bound looks like 'first_token_s<0.5'; got {text!r}"
        raise ValueError(msg)
    return Bound(measure=measure.strip(), limit_s=limit_s)


def bounds_of(objectives: Sequence[Objective]) -> list[Bound]:
    """What objectives on latencies ask of a single request: `p95_s < 2` bounds each request's latency by 2 s.

    Of several on one measure the widest counts, as `p50_s < 1` and `p99_s < 5` together allow a request of 4 s.
    """
    limits: dict[str, float] = {}
    for objective in objectives:
        if objective.op in ("<", "<=") and isinstance(objective.target, float | int):
            measure = next((m for start, m in _BOUNDED.items() if objective.metric.startswith(start)), None)
            measure = "latency_s" if objective.metric in _LATENCIES else measure
            if measure is not None and objective.target > 0:
                limits[measure] = max(limits.get(measure, 0.0), objective.target)
    return [Bound(measure=measure, limit_s=limit_s) for measure, limit_s in limits.items()]


def is_good(request: Request, bounds: Sequence[Bound]) -> bool:
    """True when it was answered and meets every bound. A bound on what it does not have (gaps, of one token) is met."""
    if not request.ok:
        return False
    values = ((MEASURES[bound.measure](request), bound.limit_s) for bound in bounds)
    return all(value is None or value <= limit_s for value, limit_s in values)


def _over(requests: Sequence[Request], measure: Measure) -> Spread | None:
    return _spread([value for value in map(measure, requests) if value is not None])


def _spread(samples: list[float]) -> Spread | None:
    if not samples:
        return None
    p50, p95, p99 = quantiles(samples, [0.5, 0.95, 0.99])
    return Spread(n=len(samples), p50=p50, p95=p95, p99=p99, max=max(samples))
