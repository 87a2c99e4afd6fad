"""Pace: when a Locust user wanted to begin a task, as far as its waiting tells."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Pace:
    """One user's waiting. Times are seconds on time.monotonic().

    A user sleeps between tasks. When it wakes later than it wanted, its next request is late by as much. Where pauses
    are worked out by `constant_pacing` or `constant_throughput`, it is also known when a task was due although the one
    before took too long: Locust then starts at once, one task late, and drops those that came due meanwhile.
    """

    late_s: float = 0.0  # what the next request must be dated back by
    skipped: int = 0  # tasks that came due before it and were not begun
    pacing_s: float | None = None  # of those
    _began_s: float | None = field(default=None)  # when the present task was to begin

    def pauses(self, now_s: float, pause_s: float, pacing_s: float | None) -> float:
        """The user is about to sleep; return when the next task was due.

        `pacing_s`: the time from one start to the next that its pause is worked out from; None: there is none.
        """
        wakes_s = now_s + pause_s
        due_s, self.skipped, self.pacing_s = wakes_s, 0, pacing_s
        if pacing_s and pause_s <= 0 and self._began_s is not None:
            due_s = min(self._began_s + pacing_s, now_s)
            self.skipped = int((now_s - due_s) / pacing_s)
        self._began_s = wakes_s
        return due_s

    def wakes(self, now_s: float, due_s: float) -> None:
        """The user goes on with a task that was due at `due_s`."""
        self.late_s = max(0.0, now_s - due_s)

    def sends(self) -> tuple[float, int]:
        """How late the request that begins now is, and how many tasks were skipped before it; then both are 0."""
        late_s, skipped = self.late_s, self.skipped
        self.late_s, self.skipped = 0.0, 0
        return late_s, skipped


def would_have_taken(latency_s: float, skipped: int, pacing_s: float) -> list[float]:
    """Estimated latencies of skipped tasks, in seconds from when each was due.

    Had they been sent, they would have ended with the one that was sent after them, whose latency from its own due time
    is given: each came due one pacing later. Source: HdrHistogram's correction for coordinated omission.
    """
    return [latency_s - (place + 1) * pacing_s for place in range(skipped)]
