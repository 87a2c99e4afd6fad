"""Breaker: leaves a deployment alone that fails, and asks it again now and then."""

from paceline.accelerate.routing.policy import BreakerPolicy

_BUCKETS = 10


class Breaker:
    """Closed, open, or half open with one call under way that decides. Pure; time is handed in.

    Outcomes are counted in a window of ten buckets that slides with time. Source: Nygard, Release It!, 5.2.
    """

    __slots__ = ("_bucket_s", "_calls", "_failures", "_newest", "_open_s", "_open_until_s", "_policy", "_probing")

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._bucket_s = policy.window_s / _BUCKETS
        self._newest = 0  # number of the newest bucket, counted since time zero
        self._calls = [0] * _BUCKETS
        self._failures = [0] * _BUCKETS
        self._open_until_s: float | None = None  # None: closed
        self._open_s = policy.open_s  # of the next opening
        self._probing = False

    @property
    def is_closed(self) -> bool:
        """True while nothing is held against the deployment."""
        return self._open_until_s is None

    def admits(self, now_s: float) -> bool:
        """Whether a call may go: closed, or open long enough and nobody is probing."""
        return self._open_until_s is None or (now_s >= self._open_until_s and not self._probing)

    def begin(self, now_s: float) -> bool:
        """A call goes there. True: it is the probe, and its end must be told with `probe=True`."""
        if self._open_until_s is None or self._probing or now_s < self._open_until_s:
            return False
        self._probing = True
        return True

    def end(self, now_s: float, *, failed: bool | None, probe: bool) -> None:
        """A call is over; `failed` None: it says nothing about the deployment (the caller left, a hedge lost)."""
        if probe:
            self._probing = False
            if failed is not None:
                self._judge_probe(now_s, failed=failed)
        elif failed is not None and self._open_until_s is None:
            self._count(now_s, failed=failed)

    def _judge_probe(self, now_s: float, *, failed: bool) -> None:
        if failed:
            self._open_s = min(2 * self._open_s, self._policy.max_open_s)
            self._open_until_s = now_s + self._open_s
        else:
            self._open_until_s = None
            self._open_s = self._policy.open_s
            self._forget()

    def _count(self, now_s: float, *, failed: bool) -> None:
        number = int(now_s / self._bucket_s)
        passed = number - self._newest
        if passed >= _BUCKETS:
            self._forget()
        elif passed > 0:
            for old in range(self._newest + 1, number + 1):
                self._calls[old % _BUCKETS] = self._failures[old % _BUCKETS] = 0
        if passed > 0:
            self._newest = number
        place = self._newest % _BUCKETS
        self._calls[place] += 1
        if failed:
            self._failures[place] += 1
            calls, failures = sum(self._calls), sum(self._failures)
            if calls >= self._policy.min_calls and failures >= self._policy.failure_ratio * calls:
                self._open_until_s = now_s + self._open_s
                self._forget()

    def _forget(self) -> None:
        self._calls = [0] * _BUCKETS
        self._failures = [0] * _BUCKETS
