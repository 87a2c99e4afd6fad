"""Demand: how many connections an open schedule needs, as the target answers now."""

import bisect
import math
from collections.abc import Sequence

from paceline.load.pool import Pool

_EXPECTED_S = 0.05  # latency before there is a better guess
_SPARE = 1.4  # lines per request expected in flight: at 10,000/s this kept the lateness at P99 at 3.5 ms


class Demand:
    """The latency to reckon with, and the connections that follow from it."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._expected_s = _EXPECTED_S

    def warmed(self, answer_s: float) -> None:
        """An answer before the start took that long."""
        self._expected_s = max(self._expected_s, answer_s)

    def seen(self, mean_s: float) -> None:
        """Answers took that long in the mean lately."""
        self._expected_s += 0.5 * (mean_s - self._expected_s)

    def lines_for(self, rate_per_s: float, oldest_s: float = 0.0) -> int:
        """Connections for this rate; `oldest_s`: the age of the oldest request under way."""
        return math.ceil(rate_per_s * max(self._expected_s, oldest_s) * _SPARE) + 1

    def fit(self, due_s: Sequence[float], now_s: float) -> None:
        """Allow as many lines as the coming second of the schedule needs at the latency there is now.

        A hiccup of ours leaves the latency as it is and must not open a connection for everything that is late; a
        stall of the target makes requests under way older, and then there are more of them.
        """
        pool = self._pool
        if not pool.waiting:
            return
        first = bisect.bisect_left(due_s, now_s)
        rate_per_s = max(bisect.bisect_left(due_s, now_s + 1) - first, 1)
        oldest_s = max((now_s - line.started_s for line in pool.lines if line.busy), default=0.0)
        pool.allow(max(pool.allowed, self.lines_for(rate_per_s, oldest_s)))


def busiest(due_s: Sequence[float]) -> int:
    """Most arrivals within one second."""
    most = first = 0
    for place, at_s in enumerate(due_s):
        while due_s[first] < at_s - 1:
            first += 1
        most = max(most, place - first + 1)
    return most
