"""The limits of one gate that are known as figures: the user's, and those the provider states in its headers."""

import asyncio
from collections.abc import Callable
from typing import NamedTuple, Protocol

from paceline.accelerate.limits.bucket import Bucket, Rate
from paceline.accelerate.limits.policy import Bounds
from paceline.accelerate.limits.window import Window

REQUESTS, TOKENS = "requests", "tokens"


class Demand(NamedTuple):
    """What waits at a gate."""

    calls: int
    tokens: int
    first_tokens: int  # of the call whose turn is next


class Meter(Protocol):
    """Counts calls and tokens against the known limits, of this process alone or of all together."""

    def bind(self, wake: Callable[[], None], demand: Callable[[], Demand]) -> None:
        """The gate it serves: `wake` it when a wait of inf may be over; `demand` says what waits."""
        ...

    def wait_s(self, tokens: int, now_s: float) -> float:
        """Seconds until a call of so many tokens may pass; 0.0: now; inf: not known yet, the gate will be woken."""
        ...

    def try_take(self, tokens: int, now_s: float) -> bool:
        """Count a call if it may pass now."""
        ...

    def take(self, tokens: int, now_s: float) -> None:
        """Count a call that passes; right after `wait_s` said 0.0."""
        ...

    def correct(self, more_tokens: int) -> None:
        """A call turned out to be so many tokens larger; negative: smaller."""
        ...

    def drain_s(self, calls: float, tokens: float, now_s: float) -> float:
        """Seconds until so many calls with so many tokens will have passed, at best."""
        ...

    def not_before(self, until_s: float, calls: float | None, tokens: float | None, now_s: float) -> None:
        """Refused: at `until_s`, not earlier, so many calls and tokens will be left. None: that was not what lacked."""
        ...

    def told(self, kind: str, rate: Rate, low: float, high: float, now_s: float) -> None:
        """The provider states a limit, and that from `low` to `high` units of it are left now."""
        ...

    def close(self) -> asyncio.Task[None] | None:
        """The gate goes away. What is returned is cancelled; whoever can waits for its end."""
        ...


_ARMED = 10  # minutes that a refusal makes a window count
_BURST = 0.07  # of a minute, meanwhile


class LocalMeter:
    """This process alone. `parts`: how many processes each have such a meter for the same limits."""

    __slots__ = ("_is_even", "_now_s", "_parts", "_requests", "_tokens", "_told", "_window")

    def __init__(self, bounds: Bounds, now_s: float, *, parts: int = 1) -> None:
        mine = bounds.divided(parts)
        self._parts = parts
        self._requests = [Bucket(rate, now_s) for rate in mine.requests]
        self._tokens = [Bucket(mine.tokens, now_s)] if mine.tokens is not None else []
        self._told: dict[str, Bucket] = {}
        self._window = _window_of(mine.tokens) if mine.tokens is not None else None
        self._now_s = now_s  # of the last call that passed
        self._is_even = False  # bursts are small, as long as the window is armed

    def bind(self, wake: Callable[[], None], demand: Callable[[], Demand]) -> None:
        """As `Meter` says."""
        return  # all it says is known at once

    def wait_s(self, tokens: int, now_s: float) -> float:
        """As `Meter` says."""
        wait_s = 0.0
        for bucket in self._requests:
            this_s = bucket.wait_s(1.0, now_s)
            if this_s > wait_s:
                wait_s = this_s
        for bucket in self._tokens:
            this_s = bucket.wait_s(tokens, now_s)
            if this_s > wait_s:
                wait_s = this_s
        if self._window is not None:
            wait_s = max(wait_s, self._window.wait_s(tokens, now_s))
        return wait_s

    def try_take(self, tokens: int, now_s: float) -> bool:
        """As `Meter` says."""
        window = self._window
        if window is not None and window.wait_s(tokens, now_s) > 0:
            return False
        for bucket in self._requests:
            if not bucket.try_take(1.0, now_s):
                for earlier in self._requests[: self._requests.index(bucket)]:
                    earlier.take(-1.0)
                return False
        for bucket in self._tokens:
            if not bucket.try_take(tokens, now_s):
                for earlier in self._requests:
                    earlier.take(-1.0)
                for earlier in self._tokens[: self._tokens.index(bucket)]:
                    earlier.take(-tokens)
                return False
        if window is not None:
            window.take(tokens, now_s)
            self._now_s = now_s
        return True

    def take(self, tokens: int, now_s: float) -> None:
        """As `Meter` says."""
        for bucket in self._requests:
            bucket.take(1.0)
        for bucket in self._tokens:
            bucket.take(tokens)
        if self._window is not None:
            self._window.take(tokens, now_s)
        self._now_s = now_s

    def correct(self, more_tokens: int) -> None:
        """As `Meter` says."""
        for bucket in self._tokens:
            bucket.take(more_tokens)
        window = self._window
        if window is not None:
            window.take(more_tokens, self._now_s)
            if self._is_even and self._now_s >= window.armed_until_s:
                self._is_even = False
                for bucket in self._tokens:
                    bucket.burst = bucket.per_s * window.span_s

    def drain_s(self, calls: float, tokens: float, now_s: float) -> float:
        """As `Meter` says."""
        waits = [bucket.drain_s(calls, now_s) for bucket in self._requests]
        waits += [bucket.drain_s(tokens, now_s) for bucket in self._tokens]
        return max(waits, default=0.0)

    def not_before(self, until_s: float, calls: float | None, tokens: float | None, now_s: float) -> None:
        """As `Meter` says."""
        for buckets, left in ((self._requests, calls), (self._tokens, tokens)):
            if left is not None:
                for bucket in buckets:
                    bucket.not_before(until_s, left)
        if tokens is not None and self._window is not None:
            self._window.arm(now_s, _ARMED * self._window.span_s)
            for bucket in self._tokens:  # what passes at once is small meanwhile, or a minute comes in one lump
                bucket.burst = min(bucket.burst, bucket.per_s * self._window.span_s * _BURST)
            self._is_even = True

    def told(self, kind: str, rate: Rate, low: float, high: float, now_s: float) -> None:
        """As `Meter` says."""
        rate = rate.divided(self._parts)
        bucket = self._told.get(kind)
        if bucket is None:
            bucket = self._told[kind] = Bucket(rate, now_s)
            (self._requests if kind == REQUESTS else self._tokens).append(bucket)
        elif (bucket.per_s, bucket.burst) != rate:
            bucket.change(rate, now_s)
        if kind == TOKENS and self._window is None:
            self._window = _window_of(rate)
        bucket.clamp(low / self._parts, high / self._parts, now_s)

    def close(self) -> asyncio.Task[None] | None:
        """As `Meter` says."""
        return None


def _window_of(rate: Rate) -> Window | None:
    """A limit's own period as a window; None: its burst says of none."""
    span_s = rate.burst / rate.per_s
    return Window(rate.burst, span_s) if span_s > 0 else None
