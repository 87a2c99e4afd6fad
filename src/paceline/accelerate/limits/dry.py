"""Refusals in a row: whether the provider took anything between them. Pure; time is handed in."""

import math


class DrySpell:
    """From a refusal until the provider takes a call again.

    Answers come late (a model thinks for seconds) but refusals at once. So a call that was sent before the last refusal
    and has not been refused by the next was taken, whether it is answered or not.
    """

    __slots__ = ("_last_s", "_refused", "_sent", "lately", "since_s", "times")

    def __init__(self) -> None:
        self.times = 0  # refusals in a row, those of calls sent together counted once
        self.since_s = -math.inf
        self._last_s = -math.inf
        self._sent = 0  # since it began, up to the last refusal
        self.lately = 0  # calls sent after the last refusal; the gate counts them
        self._refused = 0

    def taken(self, admitted_s: float) -> None:
        """A call was answered with anything but a refusal."""
        if admitted_s > self._last_s:
            self.times = 0

    def refused(self, admitted_s: float, now_s: float) -> bool:
        """A call was refused; False when it was sent before the last refusal was known: nothing new."""
        if admitted_s <= self._last_s:
            self._refused += admitted_s > self.since_s
            return False
        if not self.times or self._sent > self._refused:
            self.times, self.since_s = 1, now_s
            self._sent = self._refused = 0
        else:
            self.times += 1
            self._sent += self.lately
            self._refused += 1
        self.lately = 0
        self._last_s = now_s
        return True
