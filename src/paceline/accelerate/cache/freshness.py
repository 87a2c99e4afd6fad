"""Freshness: from when on an answer is stale, gone, or better refreshed before it is.

Early refresh is XFetch: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", PVLDB
8(8), 2015. A hit at `now` refreshes when `now - compute_s * beta * ln(u) >= expires` with u uniform in (0, 1]: the
slower an answer is to make and the nearer its end, the likelier, and independent callers rarely choose the same
moment. The paper's optimum is beta = 1.
"""

import math
import random
from collections.abc import Callable

FRESH, REFRESH, STALE, GONE = range(4)
_SURELY_NOT = 21.0  # e^-21 < 1e-9: so many compute times before its end no draw refreshes
_REFRESH_LEAST_S = 1.0


class Freshness:
    """The rules of one policy. Times are Unix seconds.

    Args:
        stale_s: How long after its end an answer may still be given.
        early: XFetch's beta; 0: off.
        draw: Uniform numbers in [0, 1).
    """

    def __init__(self, stale_s: float, early: float, draw: Callable[[], float] = random.random) -> None:
        self.stale_s = stale_s
        self.early = early
        self._draw = draw

    def quiet_until_s(self, expires_s: float, compute_s: float) -> float:
        """Until then a hit is fresh and surely not due for an early refresh."""
        return expires_s - _SURELY_NOT * self.early * compute_s

    def judge(self, now_s: float, expires_s: float, dead_s: float, compute_s: float) -> int:
        """FRESH, REFRESH (fresh, and this caller should make a new one), STALE or GONE.

        Args:
            now_s: The time of the hit.
            expires_s: From then on stale.
            dead_s: From then on gone.
            compute_s: What making it takes; 0: no early refresh.
        """
        if now_s >= expires_s:
            return STALE if now_s < dead_s else GONE
        if self.early and now_s >= self.quiet_until_s(expires_s, compute_s):
            lead_s = -self.early * compute_s * math.log(1.0 - self._draw())
            if lead_s > 0 and now_s + lead_s >= expires_s:
                return REFRESH
        return FRESH


def refresh_takes_s(compute_s: float) -> float:
    """For how long one refresh is expected to be under way, so that no second one begins."""
    return max(_REFRESH_LEAST_S, 2.0 * compute_s)
