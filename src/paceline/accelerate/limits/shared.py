"""Known limits kept by several processes together, through a store that all of them reach.

A process fetches permits in small batches, one round trip each, and spends them within `KEEP_S`; tokens it cannot spend
go back with the next fetch. The store hands permits out in the order it is asked (GCRA), also such as may only be used
later, so that processes queue there and none polls. Since a permit is used at most `KEEP_S` after it was due, all
processes together admit at most

    rate x (window + KEEP_S) + burst        calls in any window; of tokens, what came back may pass beside it.

Never does a call wait for the store longer than its time-out: then, and until the store answers again, this process
keeps its part of the limits for itself (at the change one burst more may pass, divided among the processes).
"""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from paceline.accelerate.limits.bucket import Rate
from paceline.accelerate.limits.meter import REQUESTS, Demand, LocalMeter
from paceline.accelerate.limits.policy import Bounds

KEEP_S = 0.1  # a permit not used so long after it was due goes back; traffic of so much time is fetched at once
_LONGEST_S = 60.0  # a permit due later than this is not reserved; it is asked for again nearer the time
_ROUNDING = 1e-6  # units


class Want(NamedTuple):
    """What one process wants of one limit."""

    rate: Rate
    units: float  # as many of these as are due within KEEP_S
    least: float  # but so many at once even if they are due later; 0: none
    back: float  # taken earlier and not used; negative: used beyond what was taken
    at_most: float  # the provider was heard to have no more left; inf: not heard


class Grant(NamedTuple):
    """What it gets: `units`, the last of them due in `due_s` seconds. 0: the least would be due then; not reserved."""

    units: float
    due_s: float


class Answer(NamedTuple):
    """The store's answer to the wants of one gate, in their order."""

    grants: Sequence[Grant]
    held_s: float  # another process was told by the provider to wait so long


class Store(Protocol):
    """Where processes meet. `exchange` raises StoreDown, after its time-out at the latest."""

    name: str  # to show, without credentials
    is_up: bool

    def may_try(self) -> bool:
        """True when it is time to try a store that is down again."""
        ...

    async def exchange(self, gate: str, wants: Sequence[Want], hold_s: float) -> Answer:
        """One round trip: take permits, give back, tell of a hold."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class StoreDown(Exception):
    """The store did not answer, or not in time."""


class _Permits:
    """What this process has of one limit."""

    def __init__(self, rate: Rate, *, returns: bool = False) -> None:
        """`returns`: what is not used in time goes back, else it is lost. Calls' permits are: by the time they expire
        others may have been given the moments after them, and what came back would be used at such a moment, too."""
        self.rate = rate
        self.returns = returns
        self.back = 0.0
        self.at_most = math.inf
        self._grants: deque[list[float]] = deque()  # [units left, when the last is due]

    @property
    def units(self) -> float:
        return sum(units for units, _ in self._grants)

    def add(self, units: float, due_s: float) -> None:
        self._grants.append([units, due_s])

    def expire(self, now_s: float) -> None:
        while self._grants and self._grants[0][1] + KEEP_S < now_s:
            units, _ = self._grants.popleft()
            if self.returns:
                self.back += units

    def drop(self) -> None:
        """Give all back."""
        self.back += self.units
        self._grants.clear()

    def wait_s(self, amount: float, now_s: float) -> float:
        """Seconds until so much may be used; inf when there is not so much."""
        earlier_s = now_s
        for units, due_s in self._grants:
            if units + _ROUNDING >= amount:
                # Units come due one after the other, but a call larger than the burst does as a whole.
                ahead_s = 0.0 if units > self.rate.burst else (units - amount) / self.rate.per_s
                return max(0.0, earlier_s - now_s, due_s - ahead_s - now_s)
            amount -= units
            earlier_s = max(earlier_s, due_s)
        return math.inf

    def take(self, amount: float) -> None:
        while self._grants and amount > 0:
            grant = self._grants[0]
            used = min(grant[0], amount)
            grant[0] -= used
            amount -= used
            if grant[0] <= _ROUNDING:
                self._grants.popleft()


class SharedMeter:
    """One gate's part in limits kept together; `local` takes over while the store is down."""

    def __init__(self, name: str, bounds: Bounds, store: Store, local: LocalMeter, now_s: Callable[[], float]) -> None:
        self._name = name
        self._store = store
        self._local = local
        self._now_s = now_s
        self._requests = [_Permits(rate) for rate in bounds.requests]
        self._tokens = [_Permits(bounds.tokens, returns=True)] if bounds.tokens is not None else []
        self._told: dict[str, _Permits] = {}
        self._held_until_s = -math.inf
        self._blocked_until_s = -math.inf  # the store said: not before
        self._tell_until_s = -math.inf  # a hold the others have to hear of
        self._fetching: asyncio.Task[None] | None = None
        self._fetched_s = now_s()
        self._passed = (0, 0)  # calls and tokens since then
        self._needed_tokens = 0
        self._wake: Callable[[], None] = _nobody
        self._demand: Callable[[], Demand] = _nothing

    def bind(self, wake: Callable[[], None], demand: Callable[[], Demand]) -> None:
        """As `Meter` says."""
        self._wake = wake
        self._demand = demand

    def wait_s(self, tokens: int, now_s: float) -> float:
        """As `Meter` says."""
        if not self._requests and not self._tokens:
            return 0.0
        if not self._store.is_up:
            if self._fetching is None and self._store.may_try():
                self._fetch()
            return self._local.wait_s(tokens, now_s)
        wait_s = max(0.0, self._held_until_s - now_s)
        for permits, amount in self._amounts(tokens):
            permits.expire(now_s)
            wait_s = max(wait_s, permits.wait_s(amount, now_s))
        if wait_s == math.inf:
            if self._blocked_until_s > now_s:
                return self._blocked_until_s - now_s
            self._needed_tokens = tokens
            self._fetch()
        return wait_s

    def try_take(self, tokens: int, now_s: float) -> bool:
        """As `Meter` says."""
        if self.wait_s(tokens, now_s) != 0.0:
            return False
        self.take(tokens, now_s)
        return True

    def take(self, tokens: int, now_s: float) -> None:
        """As `Meter` says."""
        if not self._requests and not self._tokens:
            return
        if not self._store.is_up:
            self._local.take(tokens, now_s)
            return
        for permits, amount in self._amounts(tokens):
            permits.take(amount)
        self._passed = (self._passed[0] + 1, self._passed[1] + tokens)
        # The next batch is fetched before this one ends, so that nobody waits for the round trip.
        calls = self._requests[0].units if self._requests else math.inf
        if calls < self._passed[0] / 2 and now_s - self._fetched_s < KEEP_S:
            self._needed_tokens = tokens
            self._fetch()

    def correct(self, more_tokens: int) -> None:
        """As `Meter` says."""
        if not self._store.is_up:
            self._local.correct(more_tokens)
        else:
            for permits in self._tokens:
                permits.back -= more_tokens

    def drain_s(self, calls: float, tokens: float, now_s: float) -> float:
        """As `Meter` says."""
        if not self._store.is_up:
            return self._local.drain_s(calls, tokens, now_s)
        waits = [
            max(0.0, calls - permits.units - permits.rate.burst) / permits.rate.per_s for permits in self._requests
        ]
        waits += [
            max(0.0, tokens - permits.units - permits.rate.burst) / permits.rate.per_s for permits in self._tokens
        ]
        return max([*waits, self._held_until_s - now_s, self._blocked_until_s - now_s])

    def not_before(self, until_s: float, calls: float | None, tokens: float | None, now_s: float) -> None:
        """As `Meter` says."""
        self._local.not_before(until_s, calls, tokens, now_s)
        self._tell_until_s = until_s
        for group, left in ((self._requests, calls), (self._tokens, tokens)):
            if left is not None:
                for permits in group:
                    permits.drop()
                    permits.at_most = min(permits.at_most, left - permits.rate.per_s * (until_s - now_s))
        if self._store.is_up:
            self._fetch()

    def told(self, kind: str, rate: Rate, low: float, high: float, now_s: float) -> None:
        """As `Meter` says."""
        self._local.told(kind, rate, low, high, now_s)
        permits = self._told.get(kind)
        if permits is None:
            permits = self._told[kind] = _Permits(rate, returns=kind != REQUESTS)
            (self._requests if kind == REQUESTS else self._tokens).append(permits)
        permits.rate = rate
        permits.at_most = min(permits.at_most, max(0.0, high))

    def close(self) -> asyncio.Task[None] | None:
        """As `Meter` says."""
        if self._fetching is not None:
            self._fetching.cancel()
        return self._fetching

    def _amounts(self, tokens: int) -> list[tuple[_Permits, float]]:
        return [(permits, 1.0) for permits in self._requests] + [(permits, float(tokens)) for permits in self._tokens]

    def _fetch(self) -> None:
        if self._fetching is None:
            # Awaited by nobody: it ends by itself after the store's time-out, or in `close`.
            self._fetching = asyncio.get_running_loop().create_task(self._exchange())

    async def _exchange(self) -> None:
        wants = self._wants()
        hold_s, self._tell_until_s = max(0.0, self._tell_until_s - self._now_s()), -math.inf
        asked = [*self._requests, *self._tokens]
        given = [(permits, permits.back) for permits in asked]
        for permits in asked:
            permits.back, permits.at_most = 0.0, math.inf
        try:
            answer = await self._store.exchange(self._name, wants, hold_s)
        except StoreDown:
            for permits in asked:
                permits.drop()
                permits.back = 0.0  # what was taken before an outage has long been free again after it
        except BaseException:
            for permits, back in given:
                permits.back += back
            raise
        else:
            self._accept(asked, answer)
        finally:
            self._fetching = None
        if self._store.is_up and self._tell_until_s > self._now_s():  # came up meanwhile
            self._fetch()
        self._wake()

    def _wants(self) -> list[Want]:
        now_s = self._now_s()
        demand = self._demand()
        lasted_s = max(now_s - self._fetched_s, KEEP_S)
        lately = [passed * KEEP_S / lasted_s for passed in self._passed]
        self._fetched_s, self._passed = now_s, (0, 0)
        first_tokens = demand.first_tokens if demand.calls else self._needed_tokens
        wants = []
        for group, waiting, soon, least in (
            (self._requests, max(1, demand.calls), lately[0], 1.0),
            (self._tokens, max(demand.tokens, first_tokens), lately[1], float(first_tokens)),
        ):
            for permits in group:
                permits.expire(now_s)
                units = max(0.0, math.ceil(waiting + soon - permits.units))
                least_left = max(0.0, math.ceil(least - permits.units))
                wants.append(Want(permits.rate, units, least_left, permits.back, permits.at_most))
        return wants

    def _accept(self, asked: list[_Permits], answer: Answer) -> None:
        now_s = self._now_s()
        if answer.held_s > 0:
            self._held_until_s = max(self._held_until_s, now_s + answer.held_s)
        for permits, grant in zip(asked, answer.grants, strict=True):
            if grant.units > 0:
                permits.add(grant.units, now_s + grant.due_s)
            elif grant.due_s > 0:
                self._blocked_until_s = max(self._blocked_until_s, now_s + max(KEEP_S, grant.due_s - _LONGEST_S))


def _nobody() -> None:
    return


def _nothing() -> Demand:
    return Demand(0, 0, 0)
