"""Was it the generator's fault? Its own lateness and CPU use, and what follows from them."""

import time

from paceline.stats.histogram import Histogram

_LAG_S = 0.02  # at the 99th percentile; shared machines reach 5 ms without being the bottleneck
_LAG_RATIO = 0.1  # of the median latency: later than that shows in the figures
_CPU_RATIO = 0.9  # of one core; one event loop has no more
_ACHIEVED_RATIO = 0.99


class Health:
    """Own lateness (wall seconds) and CPU use between `start` and `stop`."""

    def __init__(self) -> None:
        self.lag = Histogram()
        self._started = self._stopped = (time.monotonic(), time.process_time())
        self.late = self.lag.record  # seconds behind the schedule, or behind a timer in closed scenarios

    def start(self) -> None:
        """Begin to count CPU time."""
        self._started = (time.monotonic(), time.process_time())

    def stop(self) -> None:
        """Stop counting."""
        self._stopped = (time.monotonic(), time.process_time())

    @property
    def wall_s(self) -> float:
        """Seconds between start and stop."""
        return self._stopped[0] - self._started[0]

    @property
    def cpu_ratio(self) -> float:
        """CPU seconds per second; 1 is one core. Counts the whole process."""
        cpu_s = self._stopped[1] - self._started[1]
        return cpu_s / self.wall_s if self.wall_s > 0 else 0.0

    def trouble(self, median_latency_s: float | None, achieved: tuple[float, float] | None = None) -> str | None:
        """As `trouble_of`, from what was seen."""
        return trouble_of(self.lag, self.cpu_ratio, self.wall_s, median_latency_s, achieved)


def is_late(lag_p99_s: float, median_latency_s: float | None) -> bool:
    """So late that latencies show it: by 20 ms, and by a tenth of the median."""
    return lag_p99_s > max(_LAG_S, _LAG_RATIO * (median_latency_s or 0.0))


def is_busy(cpu_ratio: float) -> bool:
    """Nine tenths of a core, and one event loop has no more than one."""
    return cpu_ratio > _CPU_RATIO


def trouble_of(
    lag: Histogram,
    cpu_ratio: float,
    wall_s: float,
    median_latency_s: float | None,
    achieved: tuple[float, float] | None = None,
) -> str | None:
    """Why the figures show the generator rather than the target, in one sentence; None when they do not.

    `achieved`: requests per second that were really sent, and that were asked for.
    """
    lag_s = lag.quantile(0.99) or 0.0
    late, busy = is_late(lag_s, median_latency_s), is_busy(cpu_ratio) and wall_s > 1
    if not late and not busy:
        return None
    said = []
    if late:
        most_ms = max(lag.max_s, 0.0) * 1e3
        said.append(f"was up to {lag_s * 1e3:.0f} ms late (99th percentile; {most_ms:.0f} ms at most)")
    if achieved is not None and achieved[0] < _ACHIEVED_RATIO * achieved[1]:
        said.append(f"sent {achieved[0]:,.0f} of the {achieved[1]:,.0f} requests/s asked for")
    said.append(f"used {cpu_ratio:.0%} of a core" + (", all that it can" if busy else ""))
    return "the load generator " + " and ".join([", ".join(said[:-1]), said[-1]] if said[:-1] else said)
