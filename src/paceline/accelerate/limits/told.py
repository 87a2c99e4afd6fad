"""Limits as providers state them in headers: how much, in which period, and how much of it is left.

OpenAI counts requests per minute or, in low tiers, per day, under the same header. The reset tells them apart: it is
how long the limit takes to be whole again, so `reset x limit / used` is the period.
"""

import math

from paceline.accelerate.limits.bucket import Rate

_LONGER = (60.0, 1440.0)  # an hour, a day, in minutes
_CLOSE = 0.1
_FORGIVEN = 10  # minutes without a refusal: bursts may be as large as stated again
_SURE = 2  # answers in a row: a window that ends at a fixed time shows any figure now and then


class Told:
    """What the headers of one kind (requests, tokens) of one gate have said so far."""

    __slots__ = ("_burst_s", "_known_s", "_minute_s", "_period", "_refused_s", "_seen", "_streak")

    def __init__(self, minute_s: float) -> None:
        self._minute_s = minute_s
        self._period = 1.0  # minutes
        self._seen = 1.0
        self._streak = 0
        self._burst_s: float | None = None
        self._refused_s = -math.inf
        self._known_s = math.inf  # when it was first stated

    def rate(self, limit: float, remaining: float | None, reset_s: float | None, now_s: float) -> Rate:
        """The limit as a rate. All of it may go at once, unless the provider was seen to count more finely."""
        self._see(limit, remaining, reset_s)
        self._known_s = min(self._known_s, now_s)
        if now_s - self._refused_s > _FORGIVEN * self._minute_s:
            self._burst_s = None
        per_s = limit / (self._period * self._minute_s)
        return Rate(per_s, limit if self._burst_s is None else max(1.0, min(limit, per_s * self._burst_s)))

    def refused(self, admitted_s: float, now_s: float) -> None:
        """It refused a call though its headers were followed: it counts over a window, or finer.

        (60 a minute may mean 1 a second.) So the calls have to be more even: the burst is halved, from ten seconds'
        worth to one at the least.
        """
        if admitted_s < self._known_s:
            return
        most_s, least_s = self._minute_s / 6, self._minute_s / 60
        is_first = now_s - self._refused_s > _FORGIVEN * self._minute_s
        self._burst_s = most_s if is_first or self._burst_s is None else max(least_s, self._burst_s / 2)
        self._refused_s = now_s

    def _see(self, limit: float, remaining: float | None, reset_s: float | None) -> None:
        if remaining is None or not reset_s or remaining >= limit:
            return
        implied = reset_s * limit / (limit - remaining) / self._minute_s
        seen = next((period for period in _LONGER if abs(implied / period - 1) < _CLOSE), 1.0)
        self._streak = self._streak + 1 if seen == self._seen else 1
        self._seen = seen
        if self._streak >= _SURE:
            self._period = seen
