"""Was it the generator's fault? Its own lateness and CPU use, and what follows from them."""

import time

from paceline.stats.histogram import Histogram

_LAG_S = 0.02  # at the 99th percentile; shared machines reach 5 ms without being the bottleneck
_LAG_RATIO = 0.1  # of the median latency: later than that shows in the figures
_CPU_RATIO = 0.9  # of one core; one event loop has no more


class Health:
    """Own lateness (wall seconds) and CPU use between `start` and `stop`."""

    def __init__(self) -> None:
        self._lag = Histogram()
        self._started = self._stopped = (time.monotonic(), time.process_time())
        self.late = self._lag.record  # seconds behind the schedule, or behind a timer in closed scenarios

    def start(self) -> None:
        """Begin to count CPU time."""
        self._started = (time.monotonic(), time.process_time())

    def stop(self) -> None:
        """Stop counting."""
        self._stopped = (time.monotonic(), time.process_time())

    def lag_s(self, q: float) -> float | None:
        """The q-th quantile of the lateness; None when nothing was timed."""
        return self._lag.quantile(q)

    @property
    def cpu_ratio(self) -> float:
        """CPU seconds per second; 1 is one core. Counts the whole process."""
        wall_s, cpu_s = (b - a for a, b in zip(self._started, self._stopped, strict=True))
        return cpu_s / wall_s if wall_s > 0 else 0.0

    def trouble(self, median_latency_s: float | None) -> str | None:
        """Why the figures show the generator rather than the target, in one sentence; None when they do not."""
        lag_s = self.lag_s(0.99) or 0.0
        if lag_s > max(_LAG_S, _LAG_RATIO * (median_latency_s or 0.0)):
            return f"the load generator was up to {lag_s * 1e3:.0f} ms late (99th percentile)"
        wall_s = self._stopped[0] - self._started[0]
        if self.cpu_ratio > _CPU_RATIO and wall_s > 1:
            return f"the load generator used {self.cpu_ratio:.0%} of a core, all that it can"
        return None
