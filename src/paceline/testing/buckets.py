"""Rate limits as providers keep them: buckets that refill continuously. Pure; time is handed in."""

import math

import msgspec

from paceline.testing.config import Model

_ROUNDING = 1e-9  # seconds; a wait below it is none


class Bucket:
    """Allows `per_min` units a minute, `burst_s` worth of them at once. Times are seconds at the provider's pace."""

    __slots__ = ("_at_s", "_level", "capacity", "per_min")

    def __init__(self, per_min: float, burst_s: float, now_s: float) -> None:
        self.per_min = per_min
        self.capacity = max(1.0, per_min / 60 * burst_s)
        self._level = self.capacity
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """Units there now; negative while in debt."""
        return min(self.capacity, self._level + (now_s - self._at_s) * self.per_min / 60)

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` may be taken; 0 when it may. What exceeds the capacity waits for a full bucket."""
        wait_s = (min(amount, self.capacity) - self.level(now_s)) * 60 / self.per_min
        return wait_s if wait_s > _ROUNDING else 0.0

    def take(self, amount: float, now_s: float) -> None:
        """Take, into debt if need be."""
        self._level = self.level(now_s) - amount
        self._at_s = now_s

    def drain(self, amount: float, now_s: float) -> None:
        """Take as much of `amount` as there is: a refused request that counts puts nobody into debt."""
        self.take(max(0.0, min(amount, self.level(now_s))), now_s)


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """One of a model's limits as it stands: "requests" or "tokens" a minute; the reset is wall time."""

    what: str
    per_min: float
    remaining: int
    reset_s: float


class Refused(Exception):
    """A request is over a limit: `what` ("requests" or "tokens") and the seconds to wait; `inf`: it will never fit."""

    def __init__(self, what: str, wait_s: float) -> None:
        super().__init__(what)
        self.what = what
        self.wait_s = wait_s


class Quota:
    """The limits of one model for one key. Times are seconds at the provider's pace."""

    def __init__(self, model: Model, now_s: float, *, failed_count: bool = False) -> None:
        self._buckets = {
            what: Bucket(per_min, model.burst_s, now_s)
            for what, per_min in (("requests", model.requests_per_min), ("tokens", model.tokens_per_min))
            if per_min
        }
        self._failed_count = failed_count

    def admit(self, tokens: int, now_s: float) -> None:
        """Take one request and its tokens. Raises Refused, with the longer wait of both, when either is missing."""
        amounts = {"requests": 1.0, "tokens": float(tokens)}
        waits = {what: bucket.wait_s(amounts[what], now_s) for what, bucket in self._buckets.items()}
        if "tokens" in waits and tokens > self._buckets["tokens"].per_min:
            waits["tokens"] = math.inf
        worst = max(waits, key=lambda what: waits[what], default=None)
        if worst is not None and waits[worst] > 0:
            if self._failed_count and "requests" in self._buckets:
                self._buckets["requests"].drain(1.0, now_s)
            raise Refused(worst, waits[worst])
        for what, bucket in self._buckets.items():
            bucket.take(amounts[what], now_s)

    def give_back(self, tokens: int, now_s: float) -> None:
        """The request failed after it was admitted: it does not count, unless failed ones do."""
        if not self._failed_count:
            for what, bucket in self._buckets.items():
                bucket.take(-1.0 if what == "requests" else -float(tokens), now_s)

    def limits(self, now_s: float, speed: float = 1.0) -> list[Limit]:
        """Each limit as it stands; the reset is wall time until its bucket is full."""
        return [
            Limit(
                what=what,
                per_min=bucket.per_min,
                remaining=max(0, int(bucket.level(now_s))),
                reset_s=bucket.wait_s(bucket.capacity, now_s) / speed,
            )
            for what, bucket in self._buckets.items()
        ]


def go_duration(seconds: float) -> str:
    """A duration as Go writes it: `12ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    ms = round(seconds * 1000)
    if ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{ms / 1000:.3f}".rstrip("0").rstrip(".") + "s"
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + shown
