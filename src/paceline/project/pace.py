"""Pace: how fast a model answers, and what of a call's service time is due to which of its tokens."""

import math
import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import NormalDist, median

import msgspec

from paceline.project.app import Pace, PoolKey
from paceline.trace.calls import Call

MIN_CALLS = 20  # fewer do not tell a model's pace
_DRAWS = 500


class ModelPace(msgspec.Struct, frozen=True, kw_only=True):
    """Latency and limits of one model; None: not known, taken as no limit."""

    ttft_p50_s: float  # time to first token
    ttft_p95_s: float
    token_gap_s: float  # between tokens
    requests_per_min: float | None = None
    tokens_per_min: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.ttft_p50_s <= self.ttft_p95_s or self.token_gap_s < 0:
            got = f"{self.ttft_p50_s:g}, {self.ttft_p95_s:g}, {self.token_gap_s:g}"
            msg = f"a pace needs 0 < ttft_p50_s <= ttft_p95_s and token_gap_s >= 0; got {got}"
            raise ValueError(msg)

    def draws(self, rng: random.Random) -> list[Pace]:
        """Paces of many calls: time to first token log-normal through its two quantiles, the gap constant."""
        sigma = math.log(self.ttft_p95_s / self.ttft_p50_s) / NormalDist().inv_cdf(0.95)
        return [(self.ttft_p50_s * math.exp(rng.gauss(0.0, sigma)), self.token_gap_s) for _ in range(_DRAWS)]


def duration_s(pace: Pace, output_tokens: int) -> float:
    """Service time of a call at this pace; the first token is in the time to first token."""
    ttft_s, gap_s = pace
    return ttft_s + gap_s * (output_tokens - 1) if output_tokens > 1 else ttft_s


def paces_of(calls: Iterable[Call]) -> tuple[dict[PoolKey, list[Pace]], set[str]]:
    """Pace of every served call, by step and model, and the models whose gap per token is not known.

    Where the time to first token was recorded the split is exact. Else service time is fitted over all calls of the
    model as a + b x output tokens, and what b does not explain is the call's time to first token.
    """
    served = [c for c in calls if c.model is not None and c.to_provider and c.ok]
    slopes, unknown = _fitted(served)
    pools: dict[PoolKey, list[Pace]] = defaultdict(list)
    for call in served:
        after_first = (call.output_tokens or 1) - 1
        model = call.model or ""
        if call.ttft_s is not None and call.ttft_s <= call.service_s:
            gap_s = (call.service_s - call.ttft_s) / after_first if after_first > 0 else slopes.get(model, 0.0)
            pools[call.step, model].append((call.ttft_s, gap_s))
        else:
            gap_s = slopes.get(model, 0.0)
            if gap_s * after_first > call.service_s:
                gap_s = call.service_s / after_first
            pools[call.step, model].append((call.service_s - gap_s * after_first, gap_s))
    return dict(pools), unknown


def _fitted(served: list[Call]) -> tuple[dict[str, float], set[str]]:
    by_model: dict[str, list[Call]] = defaultdict(list)
    for call in served:
        if (call.output_tokens or 0) > 1:
            by_model[call.model or ""].append(call)
    slopes: dict[str, float] = {}
    unknown: set[str] = set()
    for model, calls in by_model.items():
        timed = [c for c in calls if c.ttft_s is not None]
        if timed:
            slopes[model] = median((c.service_s - (c.ttft_s or 0)) / ((c.output_tokens or 2) - 1) for c in timed)
            continue
        slope, error = slope_of([c.output_tokens or 0 for c in calls], [c.service_s for c in calls])
        if slope > 3 * error:
            slopes[model] = slope
        else:
            unknown.add(model)
    return slopes, unknown


def prefill_of(calls: Iterable[Call]) -> dict[str, float]:
    """Seconds each input token adds to the time to first token, per model, where the recording shows it clearly."""
    by_model: dict[str, list[Call]] = defaultdict(list)
    for call in calls:
        if call.model and call.ok and call.ttft_s is not None and call.input_tokens:
            by_model[call.model].append(call)
    found: dict[str, float] = {}
    for model, known in by_model.items():
        slope, error = slope_of([c.input_tokens or 0 for c in known], [c.ttft_s or 0.0 for c in known])
        if len(known) >= MIN_CALLS and slope > 4 * error:
            found[model] = slope
    return found


def slope_of(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope and its standard error; (0, inf) when `xs` hardly vary or there are fewer than three."""
    n = len(xs)
    if n < 3:
        return 0.0, math.inf
    mean_x, mean_y = math.fsum(xs) / n, math.fsum(ys) / n
    spread = math.fsum((x - mean_x) ** 2 for x in xs)
    if spread <= 1e-6 * n * max(1.0, mean_x**2):
        return 0.0, math.inf
    slope = math.fsum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    rest = math.fsum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    return slope, math.sqrt(rest / (n - 2) / spread)
