"""Snapshot: where a scenario under way stands."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Where a scenario stands, times and rates at the provider's pace."""

    scenario: str
    elapsed_s: float
    duration_s: float | None  # None: bounded by requests
    requests: int | None  # None: bounded by time
    sent: int
    done: int
    errors: int
    rate_per_s: float
    p50_s: float | None
    p95_s: float | None
