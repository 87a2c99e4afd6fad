"""Does memory leak? A verdict on a series of resident-set sizes.

A p-value alone is useless here: every service warms up, and successive readings resemble each other, so a trend test
on the raw series calls 71 % of healthy services leaky. The "floors" rule looks at what memory falls back to instead.
"""

import itertools
import math
import statistics
from collections.abc import Sequence

import msgspec

from paceline.stats.quantiles import quantile

LEAK, STEADY, SPIKE, RUN_LONGER = "leak", "steady", "spike", "run longer"

_WARMUP_RATIO = 0.4  # of the series; not judged
_LEAST_MB_PER_MIN = 0.2  # a slower leak needs a week for 2 GB, and hours to be seen
_LEAST_RISE_MB, _LEAST_RISE_RATIO = 2.0, 0.01  # over the judged part; less is how allocators breathe
_LEAST_SPAN_S = 20.0
_SLOWING = 0.7  # last rise over first rise: a straight leak has 1, a plateau being reached less
_MB = 1e6


class LeakVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the series says. Rates are of the part after warm-up; None where the series is too short to have one."""

    verdict: str  # "leak", "steady", "spike", "run longer"
    reason: str  # one sentence
    mb_per_min: float | None = None
    mb_per_min_low: float | None = None  # 95 % bounds
    mb_per_min_high: float | None = None
    mb_per_1000_requests: float | None = None  # None also when the request rate was not given
    confidence: float | None = None  # that memory rises faster than 0.2 MB/min, in 0 to 1
    floor_mb: float | None = None  # what memory falls back to at the end
    peak_mb: float | None = None


class _Trend(msgspec.Struct):
    """The judged part: floors of blocks as a line with its error, floors of thirds as two rises. MB and minutes."""

    slope: float
    slope_error: float
    rises: tuple[float, float]
    minutes: float
    floor: float
    climbs: bool  # Mann-Kendall on the block floors, p < 0.01

    @property
    def low(self) -> float:
        return self.slope - 2 * self.slope_error

    @property
    def rate(self) -> float:
        return sum(self.rises) / (self.minutes * 2 / 3)

    @property
    def straight(self) -> bool:
        """Both rises matter and the last is not much smaller: neither one step nor a plateau being reached."""
        first, last = self.rises
        middle = (first + last) / 2
        return min(first, last) > 0.25 * middle and last >= _SLOWING * first and first >= 0.25 * last


def leak_verdict(
    times_s: Sequence[float], rss_bytes: Sequence[float], *, requests_per_s: float | None = None
) -> LeakVerdict:
    """Judge a series of memory readings taken under constant load, 60 s at 4 Hz or more.

    The first 40 % is warm-up. Of each third of the rest the 10th percentile is the floor, which garbage collection
    and spikes do not touch. "leak": the line through the floors of up to 24 blocks rises at 95 % confidence, both
    rises of the thirds matter, the last is at least 0.7 of the first, and the growth is worth 0.2 MB/min, 2 MB and 1 %
    of the floor. "run longer": it climbs, but not so clearly, or slows down; or there are too few readings.
    "spike": a peak more than 20 % above the floor that fell back. "steady": none of these; a leak slower than
    `mb_per_min_high` cannot be excluded, and short runs make that bound wide.

    Args:
        times_s: Seconds, ascending.
        rss_bytes: Memory of the whole process tree at these times.
        requests_per_s: Mean rate, for growth per 1,000 requests.

    Raises:
        ValueError: the two differ in length.

    Measured by `python tests/stats/test_stats_leak.py 100` on synthetic series (noise of 0.8 MB that lasts 20 s), eight
    healthy and seven leaking kinds, runs of 10, 2 and 1 minutes. Healthy: 1, 3 and 3 % are called leaks (no kind above
    12 %), 12-18 % "run longer", mostly slow plateaus. Leaking: 68-76 % are found, 14-22 % "run longer", 8-15 % missed,
    the slowest (0.5 MB/min in 10 minutes, 5 in one) and those under a sawtooth of 25 MB. In 30 minutes
    (`python -m benchmarks.leak`) one healthy series of 480 is called a leak, and 47 of 60 leaks of 0.5 MB/min are.
    """
    if len(times_s) != len(rss_bytes):
        msg = f"as many times as readings are needed; got {len(times_s)} and {len(rss_bytes)}"
        raise ValueError(msg)
    sizes = [size / _MB for size in rss_bytes]
    trend = _trend(times_s, sizes)
    if trend is None:
        span_s = times_s[-1] - times_s[0] if times_s else 0.0
        reason = f"{len(sizes)} readings over {span_s:.0f} s are too few to judge"
        return LeakVerdict(verdict=RUN_LONGER, reason=reason, peak_mb=max(sizes, default=None))
    verdict, reason = _judge(trend, max(sizes), sizes[-1])
    rising = statistics.NormalDist(trend.slope, trend.slope_error or 1e-9)
    return LeakVerdict(
        verdict=verdict,
        reason=reason,
        mb_per_min=trend.slope,
        mb_per_min_low=trend.low,
        mb_per_min_high=trend.slope + 2 * trend.slope_error,
        mb_per_1000_requests=trend.slope / 60 / requests_per_s * 1000 if requests_per_s else None,
        confidence=1 - rising.cdf(_LEAST_MB_PER_MIN),
        floor_mb=trend.floor,
        peak_mb=max(sizes),
    )


def _judge(trend: _Trend, peak: float, end: float) -> tuple[str, str]:
    rise = trend.slope * trend.minutes
    first, last = trend.rises
    if min(trend.low, trend.rate) > _LEAST_MB_PER_MIN:
        if trend.straight and rise >= max(_LEAST_RISE_MB, _LEAST_RISE_RATIO * trend.floor):
            return LEAK, f"memory rises by {trend.slope:.1f} MB/min and does not slow down"
        still_rising = last > max(_LEAST_MB_PER_MIN * trend.minutes / 3, 0.25 * first)
        if trend.climbs and still_rising and rise >= _LEAST_RISE_MB / 2:
            shape = "slows down" if last < first else "is not even"
            return RUN_LONGER, f"memory rises by {trend.slope:.1f} MB/min, but the rise {shape}: it may level off"
    above = peak - trend.floor
    if above > 0.2 * trend.floor and peak - end > above / 2:
        return SPIKE, f"memory rose to {peak:.0f} MB and fell back to {trend.floor:.0f} MB"
    bound = max(trend.slope + 2 * trend.slope_error, _LEAST_MB_PER_MIN)
    return STEADY, f"memory stays near {trend.floor:.0f} MB; a leak above {bound:.1f} MB/min would have shown"


def _trend(times_s: Sequence[float], sizes: Sequence[float]) -> _Trend | None:
    """The part after warm-up as a trend; None below 27 readings or 20 s."""
    if not times_s or times_s[-1] - times_s[0] < _LEAST_SPAN_S:
        return None
    start_s = times_s[0] + _WARMUP_RATIO * (times_s[-1] - times_s[0])
    judged = [(t / 60, size) for t, size in zip(times_s, sizes, strict=True) if t >= start_s]
    blocks = min(24, len(judged) // 9 * 3)
    if blocks < 9:
        return None
    parts = _split(judged, blocks)
    points = [(statistics.fmean(t for t, _ in part), _floor(part)) for part in parts]
    line, residuals = _line(points)
    # A spike longer than a block lifts that block's floor: blocks far above the line say nothing about what stays.
    scale = 1.4826 * statistics.median(abs(r) for r in residuals)
    kept = [point for point, r in zip(points, residuals, strict=True) if r <= 3 * scale]
    line, residuals = _line(kept)
    floors = [_floor(part) for part in _split(judged, 3)]
    return _Trend(
        slope=line,
        slope_error=_slope_error([t for t, _ in kept], residuals),
        rises=(floors[1] - floors[0], floors[2] - floors[1]),
        minutes=judged[-1][0] - judged[0][0],
        floor=floors[2],
        climbs=_climbs([size for _, size in kept]),
    )


def _line(points: list[tuple[float, float]]) -> tuple[float, list[float]]:
    """Theil-Sen slope (median over all pairs), and what is left of each point beside the line."""
    slope = statistics.median((y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(points) for x2, y2 in points[i + 1 :])
    left = [y - slope * x for x, y in points]
    middle = statistics.median(left)
    return slope, [y - middle for y in left]


def _slope_error(xs: list[float], residuals: list[float]) -> float:
    """Standard error of the slope, widened for residuals that resemble their neighbours (lag-1 autocorrelation)."""
    n = len(xs)
    squares = math.fsum(r * r for r in residuals)
    if squares == 0:
        return 0.0
    alike = math.fsum(a * b for a, b in itertools.pairwise(residuals)) / squares
    alike = min(max(alike, 0.0), 0.95)
    return math.sqrt(squares / (n - 2) / n * (1 + alike) / (1 - alike)) / statistics.pstdev(xs)


def _climbs(floors: list[float]) -> bool:
    """Mann-Kendall's test for a rising trend, p < 0.01."""
    n = len(floors)
    score = sum((b > a) - (b < a) for i, a in enumerate(floors) for b in floors[i + 1 :])
    return (score - 1) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18) > 2.33


def _floor(part: list[tuple[float, float]]) -> float:
    return quantile([size for _, size in part], 0.1)


def _split(items: list[tuple[float, float]], count: int) -> list[list[tuple[float, float]]]:
    edges = [len(items) * i // count for i in range(count + 1)]
    return [items[a:b] for a, b in itertools.pairwise(edges)]
