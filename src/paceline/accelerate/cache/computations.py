"""Computations: what `get_or_compute` is making now, each once however many ask, and the answers it stores."""

import asyncio
import inspect
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from .computing import Flight, computing
from .leases import Leases
from .levels import Found, Levels, Question
from .selection import Selection

_log = logging.getLogger(__name__)


class Work(NamedTuple):
    """How an answer is made and kept."""

    fn: Callable[[], Any]
    ttl_s: float | None
    tags: tuple[bytes, ...]
    as_type: Any
    copy: bool


class Computations:
    """Of one cache, by storage key. A caller that is cancelled takes nothing from the others."""

    def __init__(self, levels: Levels, leases: Leases, wait_s: float) -> None:
        """`wait_s`: how long another process's answer is waited for."""
        self._levels, self._leases, self._wait_s = levels, leases, wait_s
        self._flights: dict[bytes, Flight] = {}
        self.computed = self.joined = self.waited = self.refreshed = self.failed = 0

    async def result(self, question: Question, work: Work) -> Any:
        """The answer, of a computation under way or of one begun now; or what making it raised."""
        flight = self._flights.get(question.key)
        if flight is not None and flight.loop is asyncio.get_running_loop() and not flight.task.done():
            if question.key in computing.get():
                return await _called(work.fn)  # asked inside its own computation: waiting for it would never end
            self.joined += 1
        else:
            flight = self._start(question, work, background=False)
        return await flight.result()

    def refresh(self, question: Question, work: Work, newer_than_s: float) -> None:
        """Make an answer anew in the background, unless somebody does."""
        if question.key not in self._flights:
            self._start(question, work, background=True, newer_than_s=newer_than_s)

    def forget(self, selection: Selection) -> None:
        """Who asks from now on must not join what began before the invalidation, nor wait for its lease."""
        for key, flight in list(self._flights.items()):
            if selection.matches(key, flight.tags):
                del self._flights[key]
                if flight.lease is not None and flight.loop is asyncio.get_running_loop():
                    flight.lease.release()

    async def close(self) -> None:
        """Cancel those of the running loop."""
        loop = asyncio.get_running_loop()
        tasks = [flight.task for flight in self._flights.values() if flight.loop is loop]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, question: Question, work: Work, *, background: bool, newer_than_s: float = 0.0) -> Flight:
        async def produce() -> Any:
            try:
                flight.lease = lease = await self._leases.take(question.key)
                if lease is None and background:
                    return None  # another process is at it
                if lease is None:
                    found = await self._wait(flight, question, work.as_type, newer_than_s)
                elif lease.is_shared:
                    # Between our look and the lease another process may have been through with it.
                    found = await self._levels.look_for_other(question, work.as_type, newer_than_s)
                else:
                    found = None
                if found is not None:
                    self.waited += 1
                    return found.value
                return await self._make(flight, question, work, background=background)
            finally:
                if flight.lease is not None:
                    flight.lease.release()
                if self._flights.get(question.key) is flight:
                    del self._flights[question.key]

        flight = Flight(produce(), work.tags, background=background)
        self._flights[question.key] = flight
        return flight

    async def _wait(self, flight: Flight, question: Question, as_type: Any, newer_than_s: float) -> Found | None:
        """Wait for another process's answer; None: compute it, with the lease if it came free in time."""
        deadline_s = flight.loop.time() + self._wait_s
        while flight.lease is None:
            found = await self._leases.wait_for(Question(question.key), deadline_s, as_type, newer_than_s)
            if found is not None or flight.loop.time() >= deadline_s:
                return found
            flight.lease = await self._leases.take(question.key)
        return await self._levels.look_for_other(question, as_type, newer_than_s)

    async def _make(self, flight: Flight, question: Question, work: Work, *, background: bool) -> Any:
        computing.set(computing.get() | {question.key})  # in this task's own context
        lease = flight.lease or self._leases.without(question.key)
        started_s = time.perf_counter()
        try:
            value = await _called(work.fn)
        except Exception as error:
            self.failed += 1
            if background:
                _log.debug("a refresh in the background failed: %s", error)
            raise
        self.computed += 1
        self.refreshed += background
        value, _ = self._levels.store(
            question,
            value,
            ttl_s=work.ttl_s,
            tags=work.tags,
            compute_s=time.perf_counter() - started_s,
            as_type=work.as_type,
            copy=work.copy,
            lease=lease,
        )
        lease.release()
        return value


async def _called(fn: Callable[[], Any]) -> Any:
    value = fn()
    return await value if inspect.isawaitable(value) else value
