"""Usage: processor time and memory per request, from resource samples."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from paceline.model.request import Request, ResourceSample
from paceline.stats.quantiles import quantile

APP = "app"
_MB = 1e6
_SWITCH_S = 0.005  # sys.getswitchinterval()
_BUSY = 0.5  # of the processor
_MIN_RISE = 3  # requests in flight
_MOST_BUSY = 0.9  # above, the share of own time that was waiting cannot be told


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request costs the application's own process."""

    cores: int  # 0: not recorded
    busy_ratio: float  # of these cores, over the scenario
    miss_cpu_s: float
    hit_cpu_s: float
    mb_per_request: float | None

    @property
    def slice_s(self) -> float:
        """Turn of the processor: CPython's, but a request gets by with some twenty, for the simulation's speed."""
        return max(_SWITCH_S, self.miss_cpu_s / 20)

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
    called_s: Sequence[float],
    resources: Sequence[ResourceSample],
    assumptions: list[str],
) -> Usage:
    """Processor time per request, cached and not, and memory per request in flight.

    Args:
        requests: All of the scenario. hits: which of them a cache answered.
        called_s: When each call of the others ended, seconds since the start of the run.
        resources: Samples of the application during the scenario.
        assumptions: A sentence is added when there are none.
    """
    samples = sorted((s for s in resources if s.service == APP), key=lambda s: s.at_s)
    span_s = samples[-1].at_s - samples[0].at_s if len(samples) > 1 else 0.0
    if span_s <= 0:
        assumptions.append("no resource samples of the application: its own time is taken as fixed, memory as unknown")
        return Usage(0, 0.0, 0.0, 0.0, None)
    used_s = max(0.0, samples[-1].cpu_s - samples[0].cpu_s)
    cores = max(1, math.ceil(_fastest(samples) - 0.25))
    inside = [(r, h) for r, h in zip(requests, hits, strict=True) if samples[0].at_s <= r.ended_s <= samples[-1].at_s]
    n_hit = sum(hit for _, hit in inside)
    n_miss = max(1, len(inside) - n_hit)
    began_s = [r.started_s for r, hit in inside if not hit]
    hit_cpu_s = _hit_cpu_s(samples, [r for r, hit in inside if hit], began_s, called_s)
    hit_cpu_s = min(hit_cpu_s, used_s / max(1, len(inside)))
    return Usage(
        cores=cores,
        busy_ratio=used_s / span_s / cores,
        miss_cpu_s=max(0.0, used_s - n_hit * hit_cpu_s) / n_miss,
        hit_cpu_s=hit_cpu_s,
        mb_per_request=_mb_per_request(samples, [r for r, hit in zip(requests, hits, strict=True) if not hit]),
    )


def _hit_cpu_s(
    samples: list[ResourceSample], hits: list[Request], missed_s: Sequence[float], called_s: Sequence[float]
) -> float:
    """Processor time of an answer from the cache.

    The quickest hits met no queue: they are processor time, unless the processor was never free. Then what tells is
    how much it was used between two samples, against the hits and calls that ended there (least squares).
    """
    cached_s = [r.service_s for r in hits if r.ok and r.cache != "join"]
    if not cached_s:
        return 0.0
    quickest_s = quantile(cached_s, 0.1)
    edges = [s.at_s for s in samples]
    causes = [[r.ended_s for r in hits], missed_s, called_s]
    counts = np.array([_counts(edges, times) for times in causes], dtype=float).T
    used_s = np.array([b.cpu_s - a.cpu_s for a, b in pairwise(samples)])
    fitted, _, rank, _ = np.linalg.lstsq(counts, used_s)
    fitted_s = max(0.0, float(fitted[0])) if rank == len(causes) else quickest_s
    return fitted_s if quickest_s > 2 * fitted_s else quickest_s


def _counts(edges: list[float], times: Sequence[float]) -> list[int]:
    """How many of `times` lie between each edge and the next."""
    ordered = sorted(times)
    at = [bisect_right(ordered, edge) for edge in edges]
    return [b - a for a, b in pairwise(at)]


def _fastest(samples: list[ResourceSample]) -> float:
    """Processor seconds per second in the busiest tenth of the samples' intervals."""
    gaps = [(b.cpu_s - a.cpu_s) / (b.at_s - a.at_s) for a, b in pairwise(samples) if b.at_s > a.at_s]
    return quantile(gaps, 0.9)


def _mb_per_request(samples: list[ResourceSample], missed: list[Request]) -> float | None:
    """Memory a request in flight holds: from the first sample to the highest, over the rise in requests in flight.

    The most there had been by then counts, not the moment: Python seldom gives memory back. None: too small a rise.
    """
    starts = sorted(r.started_s for r in missed)
    ends = sorted(r.ended_s for r in missed)
    in_flight = [bisect_right(starts, s.at_s) - bisect_right(ends, s.at_s) for s in samples]
    fullest = max(range(len(samples)), key=lambda i: samples[i].rss_bytes)
    rise = max(in_flight[: fullest + 1]) - in_flight[0]
    if rise < _MIN_RISE:
        return None
    return (samples[fullest].rss_bytes - samples[0].rss_bytes) / _MB / rise
