"""Clocks. All processes of one run share an offset, so their spans line up to the microsecond."""

import time
from typing import Protocol


def current_offset_ns() -> int:
    """Unix time minus monotonic time, in ns; taken once per run and handed to every process of it."""
    return time.time_ns() - time.monotonic_ns()


class Clock(Protocol):
    """Anything that tells Unix time in ns, or ticks to take differences of; tests pass a fake."""

    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch."""
        ...

    def ticks_ns(self) -> int:
        """Nanoseconds since some moment."""
        ...

    def unix_ns(self, ticks_ns: int) -> int:
        """The Unix time of ticks."""
        ...


class RunClock:
    """Unix time that never steps: the monotonic clock plus an offset fixed at the start of the run.

    The monotonic clock is one per machine, so two processes given the same offset agree.
    """

    __slots__ = ("offset_ns",)
    ticks_ns = staticmethod(time.monotonic_ns)  # cheaper than `now_ns`: no function of ours

    def __init__(self, offset_ns: int | None = None) -> None:
        self.offset_ns = current_offset_ns() if offset_ns is None else offset_ns

    def now_ns(self) -> int:
        """Nanoseconds since the Unix epoch. About 60 ns a call."""
        return time.monotonic_ns() + self.offset_ns

    def unix_ns(self, ticks_ns: int) -> int:
        """The Unix time of ticks."""
        return ticks_ns + self.offset_ns


class FakeClock:
    """A clock that moves only when told."""

    def __init__(self, start_ns: int = 1_000_000_000_000_000_000) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        """The time last set, in ns."""
        return self._now_ns

    ticks_ns = now_ns

    def unix_ns(self, ticks_ns: int) -> int:
        """Its ticks are Unix time."""
        return ticks_ns

    def advance(self, seconds: float) -> None:
        """Move forward by `seconds`."""
        self._now_ns += round(seconds * 1e9)
