"""Verdict: is one set of runs better than another?"""

import msgspec

from paceline.model.estimate import Estimate


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The answer and the interval it rests on; `ratio` is after over before (below 1 is less)."""

    metric: str
    outcome: str  # "better", "worse", "same", "inconclusive"
    ratio: Estimate
    runs: int
