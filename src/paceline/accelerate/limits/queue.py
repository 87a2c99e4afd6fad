"""Who goes next: fair between tenants, higher priority first, nobody starves. Pure; time is handed in.

1. Calls that come again (refused by the provider) go first, in the order they were first admitted.
2. Then the highest priority. Waiting `age_s` lifts a call by one, up to the highest anybody waits with.
3. Within a priority start-time fair queueing between tenants (Goyal, Vin and Cheng, SIGCOMM 1996): each tenant's first
   call carries a start tag, the lowest goes. Two tenants that always have calls waiting differ, over any stretch, by
   no more than one call of each in what they were served; a newcomer waits behind at most one call of every other.
4. Within a tenant and priority first in, first out.

Every step costs O(log n). Tags are in cost: tokens where tokens are limited, else calls.
"""

import heapq
import itertools
from collections import deque
from typing import Generic, TypeVar

from paceline.accelerate.limits.ask import Ask

_PRIORITIES = 8  # either side of 0
_TENANTS = 10_000  # remembered while others wait
_SLACK = 64
_GONE = -1_000_000

T = TypeVar("T")


class Waiter(Generic[T]):
    """One call in the queue and what its owner waits on."""

    __slots__ = ("ask", "cost", "deadline_s", "lifted_s", "priority", "returned", "turn")

    def __init__(self, ask: Ask, cost: float, now_s: float, deadline_s: float, turn: T) -> None:
        self.ask = ask
        self.cost = cost
        self.lifted_s = now_s  # when it got the priority it has
        self.deadline_s = deadline_s
        self.turn = turn
        self.returned = ask.ticket is not None
        self.priority = max(-_PRIORITIES, min(_PRIORITIES, ask.priority))

    @property
    def is_gone(self) -> bool:
        """True once it was taken out."""
        return self.priority == _GONE


class Queue(Generic[T]):
    """Calls waiting at one gate. Takes any number; its owner bounds it."""

    def __init__(self, age_s: float) -> None:
        self._age_s = age_s
        self._returned: list[tuple[int, int, Waiter[T]]] = []  # heap by ticket; the ones gone stay until met
        self._classes: dict[int, _Class[T]] = {}
        self._deadlines: list[tuple[float, int, Waiter[T]]] = []  # heap, likewise
        self._ids = itertools.count()
        self.size = 0
        self.cost = 0.0  # of all that wait
        self.tokens = 0

    def __len__(self) -> int:
        return self.size

    def push(self, waiter: Waiter[T]) -> None:
        """Queue a call: in front when it has been admitted before."""
        self.size += 1
        self.cost += waiter.cost
        self.tokens += waiter.ask.tokens
        heapq.heappush(self._deadlines, (waiter.deadline_s, next(self._ids), waiter))
        if waiter.ask.ticket is not None:
            heapq.heappush(self._returned, (waiter.ask.ticket, next(self._ids), waiter))
        else:
            self._class(waiter.priority).push(waiter)

    def first(self, now_s: float) -> Waiter[T] | None:
        """Whose turn is next; it stays. None when nobody waits."""
        while self._returned:
            waiter = self._returned[0][2]
            if not waiter.is_gone:
                return waiter
            heapq.heappop(self._returned)
        if len(self._classes) > 1:
            self._lift(now_s)
        for priority in sorted(self._classes, reverse=True):
            waiter_or_none = self._classes[priority].first()
            if waiter_or_none is not None:
                return waiter_or_none
            del self._classes[priority]
        return None

    def pop(self, waiter: Waiter[T]) -> None:
        """Take out the one `first` gave: it is served."""
        if not waiter.returned:
            self._classes[waiter.priority].served(waiter)
        self._remove(waiter)

    def discard(self, waiter: Waiter[T]) -> None:
        """Take out one that gave up; its tenant is not charged. Nothing happens to one that is out already."""
        if not waiter.is_gone:
            if not waiter.returned:
                self._classes[waiter.priority].forget(waiter)
            self._remove(waiter)

    def next_deadline_s(self) -> float | None:
        """When the first of those waiting has waited too long."""
        while self._deadlines and self._deadlines[0][2].is_gone:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expired(self, before_s: float) -> list[Waiter[T]]:
        """Take out all whose deadline is at or before `before_s`."""
        found = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= before_s:
            waiter = heapq.heappop(self._deadlines)[2]
            self.discard(waiter)
            found.append(waiter)
        return found

    def ahead(self, ask: Ask, cost: float) -> float:
        """At most so much cost is served before this call, if none come after it; an estimate where tenants differ.

        A fair share means: before a call is served, every other tenant gets no more than this tenant does.
        """
        if ask.ticket is not None:
            return 0.0
        priority = max(-_PRIORITIES, min(_PRIORITIES, ask.priority))
        above = sum(group.cost for level, group in self._classes.items() if level > priority)
        returned = self.cost - sum(group.cost for group in self._classes.values())
        own = self._classes.get(priority)
        return above + max(0.0, returned) + (own.ahead(ask.tenant, cost) if own is not None else 0.0)

    def _class(self, priority: int) -> "_Class[T]":
        group = self._classes.get(priority)
        if group is None:
            group = self._classes[priority] = _Class(priority)
        return group

    def _lift(self, now_s: float) -> None:
        """Give those that waited long enough the next priority, unless nobody waits with a higher one."""
        for priority in sorted(self._classes)[:-1]:
            for waiter in self._classes[priority].aged(now_s - self._age_s):
                waiter.priority = priority + 1
                waiter.lifted_s = now_s
                self._class(priority + 1).push(waiter)

    def _remove(self, waiter: Waiter[T]) -> None:
        waiter.priority = _GONE
        self.size -= 1
        self.cost -= waiter.cost
        self.tokens -= waiter.ask.tokens
        if not self.size:  # idle: nothing to be fair about, no rounding to carry on
            self._classes.clear()
            self._returned.clear()
            self._deadlines.clear()
            self.cost = 0.0
        elif len(self._deadlines) > 2 * self.size + _SLACK:
            self._deadlines = [entry for entry in self._deadlines if not entry[2].is_gone]
            heapq.heapify(self._deadlines)


class _Flow(Generic[T]):
    """One tenant's calls of one priority."""

    __slots__ = ("cost", "count", "waiters")

    def __init__(self) -> None:
        self.waiters: deque[Waiter[T]] = deque()
        self.cost = 0.0
        self.count = 0  # of those still here: the deque may hold some that left


class _Class(Generic[T]):
    """The calls of one priority: start-time fair queueing over tenants."""

    def __init__(self, priority: int) -> None:
        self._priority = priority
        self._flows: dict[bytes, _Flow[T]] = {}
        self._heap: list[tuple[float, int, bytes]] = []  # start tag of each tenant's first call
        self._finish: dict[bytes, float] = {}  # of tenants served lately: where their next call starts
        self._by_age: deque[Waiter[T]] = deque()
        self._virtual = 0.0
        self._ids = itertools.count()
        self._count = 0
        self.cost = 0.0

    def push(self, waiter: Waiter[T]) -> None:
        tenant = waiter.ask.tenant
        flow = self._flows.get(tenant)
        if flow is None:
            flow = self._flows[tenant] = _Flow()
            self._enter(tenant)
        flow.waiters.append(waiter)
        flow.cost += waiter.cost
        flow.count += 1
        self.cost += waiter.cost
        self._count += 1
        self._by_age.append(waiter)

    def first(self) -> Waiter[T] | None:
        while self._heap:
            tenant = self._heap[0][2]
            flow = self._flows[tenant]
            while flow.waiters and flow.waiters[0].priority != self._priority:
                flow.waiters.popleft()
            if flow.waiters:
                return flow.waiters[0]
            heapq.heappop(self._heap)
            del self._flows[tenant]
        return None

    def served(self, waiter: Waiter[T]) -> None:
        start, _, tenant = heapq.heappop(self._heap)
        self._virtual = start
        self._finish[tenant] = start + waiter.cost
        if len(self._finish) > _TENANTS:
            self._finish = {name: tag for name, tag in self._finish.items() if tag > start}
            if len(self._finish) > _TENANTS:
                self._finish.clear()
        flow = self._flows[tenant]
        flow.waiters.popleft()
        self.forget(waiter)
        if flow.count:
            self._enter(tenant)
        else:
            del self._flows[tenant]

    def forget(self, waiter: Waiter[T]) -> None:
        """It leaves: by being served, giving up or rising."""
        flow = self._flows[waiter.ask.tenant]
        flow.cost -= waiter.cost
        flow.count -= 1
        self.cost -= waiter.cost
        self._count -= 1
        # Those gone are passed over when met; a long stall must not let them pile up.
        if len(flow.waiters) > 2 * flow.count + _SLACK:
            flow.waiters = deque(one for one in flow.waiters if one.priority == self._priority)
        if len(self._by_age) > 2 * self._count + _SLACK:
            self._by_age = deque(one for one in self._by_age if one.priority == self._priority)

    def aged(self, before_s: float) -> list[Waiter[T]]:
        """Take out all that have had this priority since `before_s` or longer."""
        found = []
        while self._by_age:
            waiter = self._by_age[0]
            if waiter.priority == self._priority:
                if waiter.lifted_s > before_s:
                    break
                self.forget(waiter)
                found.append(waiter)
            self._by_age.popleft()
        return found

    def ahead(self, tenant: bytes, cost: float) -> float:
        flow = self._flows.get(tenant)
        own = flow.cost if flow is not None else 0.0
        others = len(self._flows) - (flow is not None)
        return min(self.cost, own + others * (own + cost))

    def _enter(self, tenant: bytes) -> None:
        tag = max(self._virtual, self._finish.get(tenant, 0.0))
        heapq.heappush(self._heap, (tag, next(self._ids), tenant))
