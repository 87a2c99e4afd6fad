"""Projection: what changes would do, said before they are made."""

import msgspec

from paceline.model.change import Change
from paceline.model.figures import ProjectedFigures


class Projection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a set of changes would do to the baseline's main scenario, or why that cannot be said."""

    changes: list[Change]
    figures: ProjectedFigures | None = None
    refusal: str | None = None  # one sentence; then `figures` is None
    capacity_per_s: float | None = None  # highest rate the busiest resource allows
    bottleneck: str | None = None  # that resource
    utilisation: dict[str, float] = {}  # per resource, 0 to 1
    assumptions: list[str] = []  # what was taken from elsewhere than the baseline
    base_error: dict[str, float] = {}  # simulated over measured baseline, minus 1: p50, p95, requests_per_s
    repetitions: int = 0
    seed: int = 0
