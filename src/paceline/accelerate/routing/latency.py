"""How long a deployment takes to answer: a peak-sensitive mean to balance by, a quantile to hedge by. Pure."""

import math

_KEPT = 256  # observations the quantile rests on
_REFRESH = 16  # new ones before it is worked out again: sorting 256 numbers takes 10 us


class PeakEwma:
    """An exponentially weighted mean that jumps up at once and comes down slowly.

    A deployment that begins to stall is avoided after one slow answer, and trusted again over `decay_s`. Source: the
    load metric of Finagle's P2CPeakEwma, described in "Beyond Round Robin: Load Balancing for Latency" (Linkerd, 2016).
    """

    __slots__ = ("_decay_s", "_seen_s", "value_s")

    def __init__(self, decay_s: float) -> None:
        self._decay_s = decay_s
        self._seen_s = 0.0
        self.value_s = 0.0  # 0: nothing seen yet

    def observe(self, latency_s: float, now_s: float) -> None:
        """An answer took that long."""
        if latency_s > self.value_s:
            self.value_s = latency_s
        else:
            kept = math.exp((self._seen_s - now_s) / self._decay_s)
            self.value_s = self.value_s * kept + latency_s * (1.0 - kept)
        self._seen_s = now_s

    def at(self, now_s: float) -> float:
        """The mean now: without answers it fades, so that an avoided deployment is tried again."""
        return self.value_s * math.exp((self._seen_s - now_s) / self._decay_s)


class RecentQuantile:
    """A quantile of the last 256 observations, worked out again after every 16."""

    __slots__ = ("_count", "_min_count", "_quantile", "_recent", "value_s")

    def __init__(self, quantile: float, min_count: int) -> None:
        self._quantile = quantile
        self._min_count = min(min_count, _KEPT)
        self._recent: list[float] = []
        self._count = 0
        self.value_s: float | None = None  # None: too few observations

    def observe(self, latency_s: float) -> None:
        """An answer's first byte took that long."""
        if len(self._recent) < _KEPT:
            self._recent.append(latency_s)
        else:
            self._recent[self._count % _KEPT] = latency_s
        self._count += 1
        if self._count >= self._min_count and (self.value_s is None or self._count % _REFRESH == 0):
            ranked = sorted(self._recent)
            self.value_s = ranked[min(len(ranked) - 1, math.ceil(self._quantile * len(ranked)) - 1)]
