"""Hedging: a second attempt when the first is late; what serves first is taken, the other cancelled."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from paceline.accelerate.routing.attempt import Attempt
from paceline.accelerate.routing.verdict import Verdict

Run = Callable[[Attempt], Coroutine[Any, Any, None]]


class Race:
    """One attempt in the caller's own task, and after a while a second in a task of its own.

    When the second serves first, the first is interrupted the way `asyncio.timeout` does it: cancel the task from a
    callback, take the cancellation back where it arrives. A call that is not late pays for a timer, not for tasks.
    """

    def __init__(self, first: Attempt, second: Callable[[], Attempt | None], run: Run) -> None:
        """`first` has begun; `second` begins another, None when there may be none; `run` keeps failures in it."""
        self._first = first
        self._begin_second = second
        self._run = run
        self._second: Attempt | None = None
        self._running: asyncio.Task[None] | None = None  # the second; `result` ends it
        self._caller: asyncio.Task[Any] | None = None  # while it waits for the first
        self._interrupted = False

    async def result(self, after_s: float) -> Attempt:
        """The attempt that serves, else the one that failed last; the other has given everything back.

        When this raises or is cancelled, the second has given everything back; the first is still its beginner's.
        """
        winner: Attempt | None = None
        try:
            winner = await self._both(after_s)
            return winner
        finally:
            await self._retire_loser(winner)

    async def _both(self, after_s: float) -> Attempt:
        caller = self._caller = asyncio.current_task()
        assert caller is not None  # noqa: S101 - coroutines run in tasks
        cancelled_before = caller.cancelling()
        timer = asyncio.get_running_loop().call_later(after_s, self._start_second)
        try:
            await self._run(self._first)
        except asyncio.CancelledError:
            if not self._interrupted or caller.uncancel() > cancelled_before:
                raise  # the caller itself is told to stop
        finally:
            self._caller = None
            timer.cancel()
        if self._interrupted or (self._first.verdict is not Verdict.ANSWER and self._running is not None):
            assert self._running is not None and self._second is not None  # noqa: S101, PT018 - it interrupted, or runs
            await self._running
            return self._second
        return self._first

    def _start_second(self) -> None:
        self._second = self._begin_second()
        if self._second is not None:
            self._running = asyncio.get_running_loop().create_task(self._run(self._second))
            self._running.add_done_callback(self._second_done)

    def _second_done(self, task: asyncio.Task[None]) -> None:
        """It serves while the first is still waited for: interrupt that. What it raised, `result` raises."""
        assert self._second is not None  # noqa: S101 - it has run
        serves = not task.cancelled() and (task.exception() is not None or self._second.verdict is Verdict.ANSWER)
        if serves and self._caller is not None:
            self._interrupted = True
            self._caller.cancel()

    async def _retire_loser(self, winner: Attempt | None) -> None:
        second, running = self._second, self._running
        if second is None or running is None:
            return
        if winner is self._second:
            _retire(self._first)
            return
        if winner is None:
            second.end()
        else:
            _retire(second)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _retire(attempt: Attempt) -> None:
    if attempt.verdict is Verdict.ANSWER:
        attempt.lose()  # still under way, or it would have won
    else:
        attempt.fail()
