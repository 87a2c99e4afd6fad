"""Processor: how much of it an application used, from resource samples."""

import math
from collections.abc import Sequence
from itertools import pairwise

from paceline.model.request import ResourceSample
from paceline.stats.quantiles import quantile

_SPARE = 0.25  # of a core: what a lock handed around, and the sampler's own times, make of one core too much


def cores_of(samples: Sequence[ResourceSample]) -> int:
    """Cores the application can use at once (one under CPython's lock): those of its busiest tenth, at least 1."""
    gaps = [(b.cpu_s - a.cpu_s) / (b.at_s - a.at_s) for a, b in pairwise(samples) if b.at_s > a.at_s]
    return max(1, math.ceil(quantile(gaps, 0.9) - _SPARE)) if gaps else 1


def busy_ratio(samples: Sequence[ResourceSample]) -> float | None:
    """Share of these cores that was used, over samples in order; None: there are too few to tell."""
    span_s = samples[-1].at_s - samples[0].at_s if len(samples) > 1 else 0.0
    if span_s <= 0:
        return None
    return max(0.0, samples[-1].cpu_s - samples[0].cpu_s) / span_s / cores_of(samples)
