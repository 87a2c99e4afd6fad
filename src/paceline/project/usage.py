"""Usage: processor time and memory per request, from resource samples."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from paceline.model.request import Request, ResourceSample
from paceline.stats.quantiles import quantile
from paceline.trace.processor import busy_ratio, cores_of

APP = "app"
_MB = 1e6
_SWITCH_S = 0.005  # sys.getswitchinterval()
_BUSY = 0.5  # of the processor
_MIN_RISE = 3  # requests in flight
_INTERVALS = 150  # that processor use is explained over
_MOST_BUSY = 0.9  # above, the share of own time that was waiting cannot be told


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request costs the application's own process."""

    cores: int  # 0: not recorded
    busy_ratio: float  # of these cores, over the scenario
    request_cpu_s: float  # of an answer that is made, beyond that of a hit and of its calls to the provider
    attempt_cpu_s: float  # of each attempt at a call to the provider, refused or served
    hit_cpu_s: float  # of an answer from the cache
    mb_per_request: float | None
    slice_s: float = _SWITCH_S  # turn of the processor

    @property
    def is_busy(self) -> bool:
        """True when most of an application's slow own time is waiting for the processor."""
        return self.busy_ratio > _BUSY

    def beyond_cpu(self, own_s: float, cpu_s: float) -> float:
        """The part of recorded own time that is neither processor time nor waiting for the processor.

        A processor shared among equals stretches `cpu_s` of work to cpu_s / (1 - busy); what is left is fixed.
        """
        return max(0.0, own_s - cpu_s / (1 - min(self.busy_ratio, _MOST_BUSY)))


def usage_of(
    requests: Sequence[Request],
    hits: Sequence[bool],
    attempted_s: Sequence[float],
    resources: Sequence[ResourceSample],
    assumptions: list[str],
    *,
    speed: float = 1.0,
) -> Usage:
    """Processor time per request, cached and not, and per attempt; memory per request in flight.

    Args:
        requests: All of the scenario. hits: which of them a cache answered.
        attempted_s: When each attempt at a call to the provider ended, seconds since the start of the run.
        resources: Samples of the application during the scenario, in order.
        assumptions: A sentence is added when there are none.
        speed: How much faster than wall time the run's seconds pass; the processor's turns do not.
    """
    samples = list(resources)
    busy = busy_ratio(samples)
    if busy is None:
        assumptions.append("no resource samples of the application: its own time is taken as fixed, memory as unknown")
        return Usage(0, 0.0, 0.0, 0.0, 0.0, None)
    missed = [r for r, hit in zip(requests, hits, strict=True) if not hit]
    quick = [r for r, hit in zip(requests, hits, strict=True) if hit]
    causes = [[r.ended_s for r in quick], [r.started_s for r in missed], list(attempted_s)]
    hit_cpu_s, request_cpu_s, attempt_cpu_s = _costs_s(samples, causes, _quickest_s(quick))
    a_request_s = request_cpu_s + attempt_cpu_s * len(attempted_s) / max(1, len(missed))
    return Usage(
        cores=cores_of(samples),
        busy_ratio=busy,
        request_cpu_s=max(0.0, request_cpu_s - hit_cpu_s),
        attempt_cpu_s=attempt_cpu_s,
        hit_cpu_s=hit_cpu_s,
        mb_per_request=_mb_per_request(samples, missed),
        # CPython's, but at most forty to a request, for the simulation's own speed.
        slice_s=max(_SWITCH_S * speed, a_request_s / 40),
    )


def _quickest_s(hits: list[Request]) -> float | None:
    """The quickest answers from the cache met no queue, so they bound its processor time."""
    cached_s = [r.service_s for r in hits if r.ok and r.cache != "join"]
    return quantile(cached_s, 0.1) if cached_s else None


def _costs_s(samples: list[ResourceSample], causes: list[list[float]], most_hit_s: float | None) -> list[float]:
    """Processor seconds of each cause: how much was used between samples, against the causes that fell there.

    Least squares without negative costs, over intervals long enough to hold a cause and its work together. The costs
    of work that is not cached are scaled so that everything comes to what was used.
    """
    picked = [*samples[:: max(1, len(samples) // _INTERVALS)]]
    edges = [s.at_s for s in picked]
    counts = np.array([_counts(edges, times) for times in causes], dtype=float).T
    used_s = np.array([b.cpu_s - a.cpu_s for a, b in pairwise(picked)])
    fitted = _non_negative(counts, used_s)
    if most_hit_s is not None:
        fitted[0] = min(fitted[0], most_hit_s)
    number = counts.sum(axis=0)
    rest_s = max(0.0, float(used_s.sum() - number[0] * fitted[0]))
    explained_s = float(number[1:] @ fitted[1:])
    if explained_s > 0:
        fitted[1:] *= rest_s / explained_s
    else:  # nothing stands out: an attempt and a request cost the same
        fitted[1:] = rest_s / max(1.0, float(number[1:].sum()))
    return [float(x) for x in fitted]


def _non_negative(counts: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", used_s: "np.ndarray[Any, Any]") -> Any:
    """Least squares with the causes of negative cost left out, one after the other."""
    fitted = np.zeros(counts.shape[1])
    active = [i for i in range(counts.shape[1]) if counts[:, i].any()]
    while active:
        found = np.linalg.lstsq(counts[:, active], used_s)[0]
        if found.min() >= 0:
            fitted[active] = found
            break
        active.pop(int(found.argmin()))
    return fitted


def _counts(edges: list[float], times: Sequence[float]) -> list[int]:
    """How many of `times` lie between each edge and the next."""
    ordered = sorted(times)
    at = [bisect_right(ordered, edge) for edge in edges]
    return [b - a for a, b in pairwise(at)]


def _mb_per_request(samples: list[ResourceSample], missed: list[Request]) -> float | None:
    """Memory a request in flight holds: from the first sample to the highest, over the rise in requests in flight.

    The most there had been by then counts, not the moment: Python seldom gives memory back. None: too small a rise.
    """
    starts = sorted(r.started_s for r in missed)
    ends = sorted(r.ended_s for r in missed)
    in_flight = [bisect_left(starts, s.at_s) - bisect_left(ends, s.at_s) for s in samples]
    fullest = max(range(len(samples)), key=lambda i: samples[i].rss_bytes)
    rise = max(in_flight[: fullest + 1]) - in_flight[0]
    if rise < _MIN_RISE:
        return None
    return (samples[fullest].rss_bytes - samples[0].rss_bytes) / _MB / rise
