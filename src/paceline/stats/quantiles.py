"""Quantiles with intervals, and the ratio of two sets of runs."""

import math
from collections.abc import Callable, Sequence

import msgspec


class Interval(msgspec.Struct, frozen=True):
    """Bounds of a confidence interval; an infinite one means there is too little data to give it."""

    low: float
    high: float


def quantile(samples: Sequence[float], q: float) -> float:
    """The smallest sample that at least a share `q` of the samples does not exceed (nearest rank).

    Always a sample that was seen: interpolating would invent latencies in the gap between cached and uncached ones.

    Args:
        samples: Any order, at least one. Not modified.
        q: In 0 to 1; 0 gives the least, 1 the greatest.

    Raises:
        ValueError: empty `samples`, or `q` outside 0 to 1.
    """
    return quantiles(samples, [q])[0]


def quantiles(samples: Sequence[float], qs: Sequence[float]) -> list[float]:
    """Several quantiles at the price of one sort; see `quantile`."""
    if not samples or not all(0 <= q <= 1 for q in qs):
        msg = f"quantile needs at least one sample and q in 0 to 1; got {len(samples)} samples, q {list(qs)}"
        raise ValueError(msg)
    ordered = sorted(samples)
    # The subtracted bit keeps 0.07 * 100, which is 7.000000000000001 in floats, at rank 7.
    return [ordered[max(1, math.ceil(q * len(ordered) - 1e-9)) - 1] for q in qs]


def quantile_interval(samples: Sequence[float], q: float, confidence: float = 0.95) -> Interval:
    """Distribution-free confidence interval for the q-th quantile.

    Args:
        samples: Any order, at least one. Not modified.
        q: Quantile in (0, 1), e.g. 0.99.
        confidence: Wanted coverage in (0, 1); actual coverage is at least this, if samples are independent.

    Returns:
        Two of the samples; `low` is -inf or `high` inf when there are too few samples for that side.

    Raises:
        ValueError: empty `samples`, or `q`/`confidence` outside (0, 1).

    Source: binomial order statistics; Conover, Practical Nonparametric Statistics, 3.2. O(n log n).
    """
    if not samples or not 0 < q < 1 or not 0 < confidence < 1:
        msg = f"needs samples, q and confidence in (0, 1); got {len(samples)}, {q}, {confidence}"
        raise ValueError(msg)
    n, ordered = len(samples), sorted(samples)
    low, high = quantile_ranks(n, q, confidence)
    return Interval(ordered[low - 1] if low >= 1 else -math.inf, ordered[high - 1] if high <= n else math.inf)


def quantile_ranks(n: int, q: float, confidence: float = 0.95) -> tuple[int, int]:
    """Ranks from 1 of the two samples between which `quantile_interval` lies; 0 and n + 1 where there is none."""
    tail = (1 - confidence) / 2

    def at_most(k: int) -> float:  # P(at most k of n samples lie below the true quantile)
        return 1.0 if k >= n else incomplete_beta(n - k, k + 1, 1 - q)

    # The low rank is the largest r with P(X <= r - 1) <= tail, the high one the smallest with P(X >= r) <= tail.
    low = _first(0, n, lambda r: at_most(r) > tail)
    return low, _first(1, n + 1, lambda r: 1 - at_most(r - 1) <= tail)


def ratio_interval(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> tuple[float, Interval]:
    """Ratio of a figure after over before, with its interval, from one value per RUN (not per request).

    Requests of one run share its weather, so pooling them makes identical systems look different; runs do not.
    Welch's t interval on the difference of mean logs; the ratio is that of the geometric means.

    Raises:
        ValueError: fewer than two runs on a side, or a value that is not positive.
    """
    if len(before) < 2 or len(after) < 2 or min(*before, *after) <= 0:
        msg = f"needs at least two runs a side and positive values; got {len(before)} and {len(after)}"
        raise ValueError(msg)
    means, errors2 = [], []
    for side in (before, after):
        logs = [math.log(value) for value in side]
        mean = math.fsum(logs) / len(logs)
        means.append(mean)
        errors2.append(math.fsum((x - mean) ** 2 for x in logs) / (len(logs) - 1) / len(logs))
    difference, error2 = means[1] - means[0], sum(errors2)
    if error2 == 0:
        return math.exp(difference), Interval(math.exp(difference), math.exp(difference))
    spread = [e**2 / (len(s) - 1) for e, s in zip(errors2, (before, after), strict=True)]
    margin = student_t(1 - (1 - confidence) / 2, error2**2 / sum(spread)) * math.sqrt(error2)
    return math.exp(difference), Interval(math.exp(difference - margin), math.exp(difference + margin))


def student_t(p: float, freedom: float) -> float:
    """The p-th quantile (p in [0.5, 1)) of Student's t with `freedom` degrees of freedom, by bisection."""

    def below(t: float) -> float:
        return 1 - incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2

    low, high = 0.0, 1.0
    while below(high) < p and high < 1e9:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < p else (low, middle)
    return high


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b), from which binomial and t probabilities follow.

    Lentz's continued fraction (Numerical Recipes 6.4); about 1e-12 precise, O(sqrt(max(a, b))).
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    c, d = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    fraction = d
    for m in range(1, 100_000):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / ((1 + term * d) or tiny)
            c = (1 + term / c) or tiny
            fraction *= d * c
        if abs(d * c - 1) < 1e-13:
            break
    return math.exp(log_front) * fraction / a


def _first(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The least integer in low..high for which a monotone condition holds; `high` if none before it does."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
