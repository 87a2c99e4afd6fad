"""One limit: a bucket that refills steadily. Pure; time is handed in.

The same rule as GCRA (the generic cell rate algorithm, ITU-T I.371 annex A), kept as a level instead of a theoretical
arrival time, because the level is what providers report and what survives a change of the rate.
"""

from typing import NamedTuple

_ROUNDING = 1e-9  # units; less than this short is enough


class Rate(NamedTuple):
    """So many units a second, and so many at once."""

    per_s: float
    burst: float

    def divided(self, parts: int) -> "Rate":
        """One part of several; its burst stays at least one unit."""
        return Rate(self.per_s / parts, max(1.0, self.burst / parts))


class Bucket:
    """Lets pass at most `per_s` x window + `burst` units in any window.

    What is larger than the burst waits for a full bucket and leaves it in debt, so the rate holds for it as well; the
    bound is then larger by what such a call exceeds the burst.
    """

    __slots__ = ("at_s", "burst", "level", "per_s")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self.per_s = rate.per_s
        self.burst = rate.burst
        self.level = rate.burst  # at `at_s`
        self.at_s = now_s

    def refill(self, now_s: float) -> float:
        """The level now: at most the burst, negative in debt."""
        if now_s > self.at_s:
            self.level += (now_s - self.at_s) * self.per_s
            if self.level > self.burst:  # four times as quick as min()
                self.level = self.burst
            self.at_s = now_s
        return self.level

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until `amount` may pass; 0.0 when it may."""
        if amount > self.burst:
            amount = self.burst
        short = amount - self.refill(now_s)
        if short <= _ROUNDING:
            # A bucket emptied for the future (`not_before`) has its clock ahead of ours.
            return self.at_s - now_s if self.at_s > now_s else 0.0
        return self.at_s - now_s + short / self.per_s

    def try_take(self, amount: float, now_s: float) -> bool:
        """Take `amount` if it may pass now: `wait_s` and `take` in one, for the path every call goes."""
        if now_s > self.at_s:
            level = self.level + (now_s - self.at_s) * self.per_s
            if level > self.burst:
                level = self.burst
            self.level = level
            self.at_s = now_s
        elif now_s < self.at_s:
            return False
        level = self.level - amount
        if level < -_ROUNDING and (amount <= self.burst or self.level < self.burst - _ROUNDING):
            return False
        self.level = level
        return True

    def drain_s(self, amount: float, now_s: float) -> float:
        """Seconds until so much will have passed, if all of it is wanted as soon as possible."""
        level = self.refill(now_s)
        short_s = (amount - level) / self.per_s if amount > level else 0.0
        return self.at_s - now_s + short_s

    def take(self, amount: float) -> None:
        """Take what `wait_s` let pass, into debt if it is more than there is; negative to give back."""
        self.level -= amount
        if self.level > self.burst:
            self.level = self.burst

    def change(self, rate: Rate, now_s: float) -> None:
        """Another rate from now on; what is there stays, up to the new burst."""
        self.refill(now_s)
        self.per_s = rate.per_s
        self.burst = rate.burst
        self.level = min(self.level, rate.burst)

    def clamp(self, low: float, high: float, now_s: float) -> None:
        """The level is known to be from `low` to `high` now."""
        self.level = min(self.burst, high, max(self.refill(now_s), low))

    def not_before(self, until_s: float, most: float) -> None:
        """Nothing until `until_s`; at that moment the bucket holds `most`, or less if it would have held less."""
        if until_s >= self.at_s:
            self.level = min(self.level + (until_s - self.at_s) * self.per_s, most, self.burst)
            self.at_s = until_s
