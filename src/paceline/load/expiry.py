"""Expiry: requests that run out of time, by one timer for all, set to when the next one may."""

import asyncio
import time
from collections.abc import Callable

from paceline.load.attempt import Attempt
from paceline.load.guard import guarded
from paceline.load.line import TIMEOUT
from paceline.load.pool import Pool

_LEAST_S = 0.002  # between two looks


class Expiry:
    """Gives up what is under way or waits for a line longer than `timeout_s`. Whoever starts it stops it."""

    def __init__(
        self, pool: Pool, timeout_s: float, unsent: Callable[[Attempt, int], None], fail: Callable[[Exception], None]
    ) -> None:
        self._pool, self._timeout_s, self._unsent = pool, timeout_s, unsent
        self._sweep = guarded(self._look, fail)
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Look now, and again whenever something may have expired."""
        self._look()

    def stop(self) -> None:
        """Look no more. Safe to repeat."""
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        now_s, limit_s = time.monotonic(), self._timeout_s
        next_s = now_s + limit_s
        for line in list(self._pool.lines):
            if line.busy:
                expires_s = line.intended_s + limit_s
                if expires_s <= now_s:
                    line.give_up(TIMEOUT)
                else:
                    next_s = min(next_s, expires_s)
        waiting = self._pool.waiting
        while waiting and waiting[0].intended_s + limit_s <= now_s:
            self._unsent(waiting.popleft(), TIMEOUT)
        if waiting:
            next_s = min(next_s, waiting[0].intended_s + limit_s)
        delay_s = max(next_s - now_s, _LEAST_S)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._sweep)
