"""The limiter: calls to one model pass in order, at most so many at once, and wait when the provider says so.

After a 429 the gate is held for as long as the provider asked; the refused call keeps its place at the front. While
others still wait, they are let through at the provider's own pace rather than all at once into the next 429.
"""

import asyncio
import heapq
import itertools
from collections.abc import Iterable
from email.utils import parsedate_to_datetime

from paceline.accelerate.policy import ConcurrencyPolicy, RetryPolicy
from paceline.errors import Overloaded

_MIN_PACE_S = 0.001  # below this there is nothing to pace
_CREDIT_S = 1.0  # how far admissions may catch up on the pace: providers let unused allowance pile up, too
_GATES = 4096


def retry_after_s(headers: Iterable[tuple[bytes, bytes]], now_s: float) -> float | None:
    """Seconds the answer asks to wait: `retry-after-ms`, else `retry-after` in seconds or as a date.

    None when it does not say, or says nonsense. `now_s` is Unix time, for dates. Header names are lower case.
    """
    found = {name: value.decode("latin-1") for name, value in headers if name.startswith(b"retry-after")}
    for name, unit_s in ((b"retry-after-ms", 0.001), (b"retry-after", 1.0)):
        try:
            wait_s = float(found[name]) * unit_s
        except (KeyError, ValueError):
            continue
        if 0 <= wait_s < float("inf"):
            return wait_s
    try:
        return max(0.0, parsedate_to_datetime(found[b"retry-after"]).timestamp() - now_s)
    except (KeyError, ValueError):
        return None


class Limiter:
    """One gate for each tenant and model: that is how providers count."""

    def __init__(self, concurrency: ConcurrencyPolicy, retry: RetryPolicy) -> None:
        self._concurrency = concurrency
        self._retry = retry
        self._gates: dict[tuple[bytes, str], Gate] = {}

    def gate(self, tenant: bytes, model: str) -> "Gate | None":
        """The gate this call must pass; None when nothing limits it."""
        limit = self._concurrency.limit_of(model)
        if limit is None and not self._retry.enabled:
            return None
        gate = self._gates.get((tenant, model))
        if gate is None:
            if len(self._gates) >= _GATES:  # callers choose tenant and model, so the number needs a bound
                self._gates = {key: gate for key, gate in self._gates.items() if gate.in_flight or gate.waiting}
            gate = self._gates[tenant, model] = Gate(model, limit, self._concurrency.max_queue)
        return gate

    @property
    def in_flight(self) -> int:
        """Calls past a gate now."""
        return sum(gate.in_flight for gate in self._gates.values())

    @property
    def waiting(self) -> int:
        """Calls queued now."""
        return sum(gate.waiting for gate in self._gates.values())


class Gate:
    """What all calls with one key to one model pass. `in_flight` never exceeds `limit` (None: no bound)."""

    def __init__(self, name: str, limit: int | None, max_queue: int) -> None:
        self.name = name
        self.limit = limit
        self.max_queue = max_queue
        self.in_flight = 0
        self.peak = 0
        self._loop = asyncio.get_running_loop()
        self._queue: list[tuple[int, asyncio.Future[None]]] = []  # heap by ticket; given-up ones stay until popped
        self._waiting = 0
        self._tickets = itertools.count()
        self._held_until_s = 0.0
        self._pace_s = 0.0  # between two admissions; 0: no pacing
        self._guessed = False  # the pace is our guess, to be shortened while it works
        self._next_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> int:
        """Calls queued now."""
        return self._waiting

    def ticket(self) -> int:
        """A place in the order; a call keeps it when it has to come again after a 429."""
        return next(self._tickets)

    async def enter(self, ticket: int, deadline_s: float) -> None:
        """Wait for a turn, until `deadline_s` of the loop's clock; whoever returns from here calls `leave`.

        Raises Overloaded at once when the queue is full or the provider's hold outlasts the deadline, and when the
        deadline passes. Cancelling gives the place up.
        """
        now_s = self._loop.time()
        if not self._waiting and self._wait_s(now_s) == 0.0:
            self._admit(now_s)
            return
        if self._waiting >= self.max_queue:
            raise self._overloaded(f"{self._waiting} calls wait already")
        if self._held_until_s > deadline_s:
            raise self._overloaded("the provider's rate limit asks for a longer wait than allowed")
        turn = self._loop.create_future()
        heapq.heappush(self._queue, (ticket, turn))
        self._waiting += 1
        self._pump()
        try:
            async with asyncio.timeout_at(deadline_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # the turn came in the very moment of giving up
                self.leave()
            else:
                self._waiting -= 1
                turn.cancel()
            if isinstance(error, TimeoutError):
                raise self._overloaded("no turn within the allowed wait") from error
            raise

    def leave(self) -> None:
        """The call is over (a stream: closed)."""
        self.in_flight -= 1
        self._pump()

    def hold(self, wait_s: float, per_min: float | None = None) -> None:
        """Let nobody pass for `wait_s`, then at `per_min` calls a minute while any wait (None: a guess that adapts)."""
        self._held_until_s = max(self._held_until_s, self._loop.time() + wait_s)
        self._guessed = not per_min
        self._pace_s = 60.0 / per_min if per_min else min(max(wait_s / 8, 0.01), 1.0)
        self._pump()

    def accepted(self) -> None:
        """The provider took a call: a guessed pace may be shortened."""
        if self._guessed and self._pace_s:
            self._pace_s = self._pace_s / 2 if self._pace_s > 2 * _MIN_PACE_S else 0.0

    def _wait_s(self, now_s: float) -> float | None:
        """Seconds until the next call may pass; None: not before one leaves."""
        if self.limit is not None and self.in_flight >= self.limit:
            return None
        open_s = max(self._held_until_s, self._next_s) if self._pace_s else self._held_until_s
        return max(0.0, open_s - now_s)

    def _admit(self, now_s: float) -> None:
        self.in_flight += 1
        self.peak = max(self.peak, self.in_flight)
        if self._pace_s:
            self._next_s = max(self._next_s, self._held_until_s, now_s - _CREDIT_S) + self._pace_s

    def _pump(self) -> None:
        """Admit whoever may pass, in order of ticket, and come back when the next one may."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._queue:
            if self._queue[0][1].done():
                heapq.heappop(self._queue)
                continue
            now_s = self._loop.time()
            wait_s = self._wait_s(now_s)
            if wait_s is None:
                return
            if wait_s > 0:
                self._timer = self._loop.call_later(wait_s, self._pump)
                return
            _, turn = heapq.heappop(self._queue)
            self._waiting -= 1
            self._admit(now_s)
            turn.set_result(None)
        if self._held_until_s <= self._loop.time():
            self._pace_s = 0.0

    def _overloaded(self, why: str) -> Overloaded:
        wait_s = max(self._held_until_s - self._loop.time(), 1.0)
        return Overloaded(f"{self.name}: {why}; try again in {wait_s:.0f} s", retry_after_s=wait_s)
