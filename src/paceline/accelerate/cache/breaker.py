"""Breaker: leaves a failing part alone, so that a dead one costs a time-out now and then, not each request."""

import time
from collections.abc import Callable

_LONGEST_S = 30.0


class Breaker:
    """Opens after `failures` in a row, for `retry_s`, twice as long each time the one trial after it fails too."""

    def __init__(self, failures: int, retry_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._failures = failures
        self._retry_s = retry_s
        self._now_s = now_s
        self._failed = 0
        self._wait_s = retry_s
        self._open_until_s: float | None = None
        self.opened = 0  # times
        self.reason = ""

    @property
    def is_open(self) -> bool:
        """True while requests are kept away."""
        return self._open_until_s is not None

    def allows(self) -> bool:
        """May this request try? After the wait one may; the others follow when it succeeded."""
        if self._open_until_s is None:
            return True
        now_s = self._now_s()
        if now_s < self._open_until_s:
            return False
        self._open_until_s = now_s + self._wait_s  # until the trial is over, or lost
        return True

    def succeeded(self) -> None:
        """A request went well."""
        self._failed = 0
        self._wait_s = self._retry_s
        self._open_until_s = None

    def failed(self, reason: str) -> None:
        """A request failed."""
        self._failed += 1
        self.reason = reason
        if self._open_until_s is not None:
            self._wait_s = min(self._wait_s * 2, _LONGEST_S)
        elif self._failed < self._failures:
            return
        else:
            self.opened += 1
        self._open_until_s = self._now_s() + self._wait_s
