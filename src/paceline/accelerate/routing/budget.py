"""Budget: how many extra calls the calls that came have earned."""


class Budget:
    """Every call earns `ratio` of an extra one, every second `per_s`; at most `burst` are saved.

    So over any stretch of time extra calls are at most `burst` + `ratio` x calls + `per_s` x seconds: when everything
    fails, a provider sees a fifth more calls, not four times as many. Source: RetryBudget of Twitter's Finagle; the
    reasoning in Beyer et al., Site Reliability Engineering, chapter 21. Pure; time is handed in.
    """

    __slots__ = ("_burst", "_level", "_per_s", "_ratio", "_seen_s")

    def __init__(self, ratio: float, *, per_s: float = 0.0, burst: float = 10.0, now_s: float = 0.0) -> None:
        """It starts full where time earns something, else empty: then only calls pay for extra calls."""
        self._ratio = ratio
        self._per_s = per_s
        self._burst = burst
        self._level = burst if per_s else 0.0
        self._seen_s = now_s

    def earn(self) -> None:
        """A call came."""
        level = self._level + self._ratio
        self._level = min(self._burst, level)

    def spend(self, now_s: float) -> bool:
        """Pay for one extra call; False: it may not be made."""
        if self._per_s:
            self._level = min(self._burst, self._level + (now_s - self._seen_s) * self._per_s)
            self._seen_s = now_s
        if self._level < 1.0:
            return False
        self._level -= 1.0
        return True
