"""One gate: what all calls with one provider key to one model pass."""

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

import msgspec

from paceline.accelerate.limits.answers import Answers
from paceline.accelerate.limits.ask import Ask
from paceline.accelerate.limits.meter import Demand, Meter
from paceline.accelerate.limits.permit import Permit
from paceline.accelerate.limits.policy import Bounds, LimitsPolicy
from paceline.accelerate.limits.queue import Queue, Waiter
from paceline.accelerate.limits.signals import Signal
from paceline.errors import Overloaded

_SERVICE_WEIGHT = 0.1  # of the newest call in the mean time calls hold their slot
_ROUNDING_S = 1e-6
_TOO_LATE = "no turn within the allowed wait"
_SOONEST_S = 1.0  # told to those refused for want of a place, when nothing better is known


class GateState(msgspec.Struct, frozen=True, kw_only=True):
    """One gate now, for metrics. Of the provider key only the first bytes of its digest."""

    key: str
    model: str
    in_flight: int
    peak: int
    waiting: int
    admitted: int
    held_s: float  # the provider asked to wait so much longer
    learned_per_s: float | None  # None: nothing learned


class Clocked(Protocol):
    """What a gate needs of its owner."""

    now_s: Callable[[], float]
    ticket: Callable[[], int]  # the next place in the order of admission


class Gate:
    """In flight never exceeds the concurrency, and what passes never the rates; those too many wait in order.

    Belongs to one event loop at a time. All of it is synchronous but the waiting, so a cancelled call leaves nothing.
    """

    def __init__(self, name: str, bounds: Bounds, policy: LimitsPolicy, meter: Meter, owner: Clocked) -> None:
        self.name = name
        self.limit = bounds.concurrency
        self.in_flight = 0
        self.peak = 0
        self.tokens_in_flight = 0
        self.admitted = 0
        self.admitted_tokens = 0
        self.meter = meter
        self._policy = policy
        self._ticket = owner.ticket
        self._now_s = owner.now_s
        self._by_tokens = bounds.tokens is not None
        self._service_s: float | None = None  # mean time a call holds its slot
        adaptive = policy.adaptive
        self.answers = Answers(adaptive, bounds, meter, owner.now_s()) if adaptive.enabled else None
        self.queue: Queue[asyncio.Future[Permit]] = Queue(policy.age_s)
        self._timer: asyncio.TimerHandle | None = None
        meter.bind(self.pump, self._demand)

    @property
    def is_idle(self) -> bool:
        """True when nobody is in or waits, so that forgetting the gate forgets nothing but what it learned."""
        return not self.in_flight and not self.queue

    @property
    def _held_until_s(self) -> float:
        return -math.inf if self.answers is None else self.answers.held_until_s

    @property
    def is_held(self) -> bool:
        """True while the provider's last refusal asks to wait."""
        return self._held_until_s > self._now_s()

    def try_pass(self, ask: Ask) -> Permit | None:
        """A permit if the call may go at once, else None."""
        return None if self.queue.size else self._try(ask, self._now_s())

    def _try(self, ask: Ask, now_s: float) -> Permit | None:
        """Past those who wait. The path of every unhindered call, so written out."""
        if self.limit is not None and self.in_flight >= self.limit:
            return None
        answers = self.answers
        if (
            answers is not None
            and (answers.held_until_s > now_s or answers.learned.bucket is not None)  # spares a call, mostly
            and answers.wait_s(now_s) != 0.0
        ):
            return None
        return self._admitted(ask, now_s, waited=False) if self.meter.try_take(ask.tokens, now_s) else None

    async def pass_(self, ask: Ask) -> Permit:
        """Wait for a turn. Raises Overloaded, at once when the wait cannot end in time. Cancelling leaves nothing."""
        now_s = self._now_s()
        first = not self.queue or ask.ticket is not None  # one that comes again is not behind those who wait
        if first and (permit := self._try(ask, now_s)) is not None:
            return permit
        deadline_s = now_s + self._policy.max_wait_s if ask.deadline_s is None else ask.deadline_s
        self._refuse_hopeless(ask, deadline_s, now_s)
        turn: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        waiter = Waiter(ask, self._cost(ask), now_s, deadline_s, turn)
        self.queue.push(waiter)
        self.pump()
        try:
            return await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                turn.result().leave()  # the turn came in the very moment of giving up
            else:
                turn.cancel()
                self.queue.discard(waiter)
                self.pump()  # it may have been what the others waited behind
            raise

    def leave(self, permit: Permit) -> None:
        """A call is over."""
        self.in_flight -= 1
        self.tokens_in_flight -= permit.tokens
        held_s = self._now_s() - permit.admitted_s
        mean_s = self._service_s
        self._service_s = held_s if mean_s is None else mean_s + _SERVICE_WEIGHT * (held_s - mean_s)
        if self.queue.size:
            self.pump()

    def correct(self, more_tokens: int, *, is_in: bool) -> None:
        """A call turned out larger or, negative, smaller than it was estimated."""
        self.meter.correct(more_tokens)
        if is_in:
            self.tokens_in_flight += more_tokens
        if more_tokens < 0 and self.queue.size:
            self.pump()

    def heard(self, permit: Permit, signal: Signal) -> None:
        """Learn from an answer, and let pass whom it frees."""
        if self.answers is not None:
            self.answers.heard(permit, signal, (self.admitted, self.admitted_tokens), self._now_s())
            self._by_tokens = self._by_tokens or self.answers.states_tokens
            if self.queue.size:
                self.pump()

    def estimate_s(self, ask: Ask, now_s: float) -> float:
        """Seconds this call would have to wait, from what is known now: rates, holds, those before it."""
        cost = self._cost(ask)
        share = min(1.0, self.queue.ahead(ask, cost) / self.queue.cost) if self.queue.cost else 0.0
        calls = share * len(self.queue) + 1
        tokens = share * self.queue.tokens + ask.tokens
        waits = [0.0, self.meter.drain_s(calls, tokens, now_s)]
        if self.answers is not None:
            waits.append(self.answers.drain_s(calls, now_s))
        if self.limit is not None and self._service_s is not None:
            too_many = calls - (self.limit - self.in_flight)
            waits.append(too_many * self._service_s / self.limit)
        return max(waits)

    def pump(self) -> None:
        """Admit whoever may pass, in order, and come back when the next one may or the next deadline passes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        queue = self.queue
        if not queue.size:
            return
        now_s = self._now_s()
        # Whoever cannot be served in time is told at once, not at its deadline: it may still go elsewhere.
        for waiter in queue.expired(max(now_s, self._held_until_s)):
            self._shed(waiter, now_s)
        wake_s = math.inf
        while (waiter_or_none := queue.first(now_s)) is not None:
            wait_s = self._wait_s(waiter_or_none.ask.tokens, now_s)
            if wait_s is None:
                break
            if wait_s > 0.0:
                wake_s = wait_s
                break
            queue.pop(waiter_or_none)
            if not waiter_or_none.turn.done():
                self.meter.take(waiter_or_none.ask.tokens, now_s)
                waiter_or_none.turn.set_result(self._admitted(waiter_or_none.ask, now_s, waited=True))
        deadline_s = queue.next_deadline_s()
        if deadline_s is not None:
            wake_s = min(wake_s, deadline_s - now_s)
        if wake_s < math.inf:
            self._timer = asyncio.get_running_loop().call_later(max(_ROUNDING_S, wake_s), self.pump)

    def close(self) -> asyncio.Task[None] | None:
        """Stop the timer; nobody may wait any more. See `Meter.close`."""
        if self._timer is not None:
            self._timer.cancel()
        return self.meter.close()

    def state(self, key: str, now_s: float) -> GateState:
        """The gate now, for metrics."""
        per_s = math.inf if self.answers is None else self.answers.learned.per_s
        return GateState(
            key=key,
            model=self.name,
            in_flight=self.in_flight,
            peak=self.peak,
            waiting=len(self.queue),
            admitted=self.admitted,
            held_s=max(0.0, self._held_until_s - now_s),
            learned_per_s=None if per_s == math.inf else per_s,
        )

    def _refuse_hopeless(self, ask: Ask, deadline_s: float, now_s: float) -> None:
        """Raises Overloaded when the queue is full, or the wait is not over by the deadline."""
        if len(self.queue) >= self._policy.max_queue:
            raise self._overloaded(ask, f"{len(self.queue)} calls wait already", now_s)
        if self._held_until_s > deadline_s:
            raise self._overloaded(ask, "the provider's rate limit asks for a longer wait than allowed", now_s)
        if now_s + self.estimate_s(ask, now_s) > deadline_s + _ROUNDING_S:
            raise self._overloaded(ask, "the wait would be longer than allowed", now_s)

    def _shed(self, waiter: Waiter[asyncio.Future[Permit]], now_s: float) -> None:
        if not waiter.turn.done():
            held = self._held_until_s > now_s
            why = "the provider's rate limit asks for a longer wait than allowed" if held else _TOO_LATE
            waiter.turn.set_exception(self._overloaded(waiter.ask, why, now_s))

    def _overloaded(self, ask: Ask, why: str, now_s: float) -> Overloaded:
        wait_s = self.estimate_s(ask, now_s)
        wait_s = wait_s if _ROUNDING_S < wait_s < math.inf else _SOONEST_S
        return Overloaded(f"{self.name}: {why}; try again in {wait_s:.3g} s", retry_after_s=wait_s)

    def _wait_s(self, tokens: int, now_s: float) -> float | None:
        """Seconds until a call may pass; None: not before one leaves."""
        if self.limit is not None and self.in_flight >= self.limit:
            return None
        wait_s = self.meter.wait_s(tokens, now_s)
        return wait_s if self.answers is None else max(wait_s, self.answers.wait_s(now_s))

    def _admitted(self, ask: Ask, now_s: float, *, waited: bool) -> Permit:
        """Count a call that the meter has counted."""
        self.admitted += 1
        self.admitted_tokens += ask.tokens
        permit = Permit(self, ask.tokens, now_s, waited)
        self.in_flight += 1
        self.tokens_in_flight += ask.tokens
        if self.in_flight > self.peak:
            self.peak = self.in_flight
        if ask.ticket is None:
            ask.ticket = self._ticket()
        if self.answers is not None:
            self.answers.admitted(now_s, waited)
        return permit

    def _demand(self) -> Demand:
        first = self.queue.first(self._now_s())
        return Demand(len(self.queue), self.queue.tokens, first.ask.tokens if first is not None else 0)

    def _cost(self, ask: Ask) -> float:
        return float(max(1, ask.tokens)) if self._by_tokens else 1.0
