"""Engine: what the simulation is made of: an agenda, a processor, a provider's gate, a cache.

Plain callbacks on a heap: SimPy's processes and resources take six times as long for the same queue
(docs/decisions/0004-projection.md).
"""

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

from paceline.project.app import Quota

Action = Callable[[Any], None]


class Agenda:
    """What happens when. `now` is in seconds; equal times keep the order in which they were set."""

    __slots__ = ("_heap", "_order", "now")

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Action, Any]] = []
        self._order = 0

    def at(self, time_s: float, action: Action, argument: Any) -> None:
        """Do `action(argument)` at `time_s`."""
        self._order += 1
        heapq.heappush(self._heap, (time_s, self._order, action, argument))

    def run(self) -> None:
        """Until nothing is left to do."""
        heap, pop = self._heap, heapq.heappop
        while heap:
            self.now, _, action, argument = pop(heap)
            action(argument)


class Processor:
    """`cores` that serve all work in progress in turn, `slice_s` at a time, as CPython's lock does.

    All work is multiplied by `ratio`. With 0 cores there is no bound: work takes its time and never waits.
    """

    __slots__ = ("_agenda", "_free", "_queue", "_ratio", "_slice_s", "_unbounded", "busy_s")

    def __init__(self, agenda: Agenda, cores: int, *, slice_s: float, ratio: float = 1.0) -> None:
        self._agenda = agenda
        self._unbounded = cores == 0
        self._free = cores
        self._slice_s = slice_s
        self._ratio = ratio
        self._queue: deque[_Turn] = deque()
        self.busy_s = 0.0

    def do(self, work_s: float, rest_s: float, action: Action, argument: Any) -> None:
        """Call `action(argument)` when `work_s` of processor time, and then `rest_s` elsewhere, have passed."""
        work_s *= self._ratio
        self.busy_s += work_s
        if work_s <= 0 or self._unbounded:
            self._agenda.at(self._agenda.now + work_s + rest_s, action, argument)
            return
        turn = _Turn(work_s, rest_s, action, argument)
        if self._free:
            self._free -= 1
            self._run(turn)
        else:
            self._queue.append(turn)

    def _run(self, turn: "_Turn") -> None:
        slice_s = min(self._slice_s, turn.left_s)
        turn.left_s -= slice_s
        self._agenda.at(self._agenda.now + slice_s, self._ran, turn)

    def _ran(self, turn: "_Turn") -> None:
        queue = self._queue
        if turn.left_s > 0:
            queue.append(turn)
        else:
            self._agenda.at(self._agenda.now + turn.rest_s, turn.action, turn.argument)
        if queue:
            self._run(queue.popleft())
        else:
            self._free += 1


class _Turn:
    """Work that a processor has begun or will."""

    __slots__ = ("action", "argument", "left_s", "rest_s")

    def __init__(self, left_s: float, rest_s: float, action: Action, argument: Any) -> None:
        self.left_s = left_s
        self.rest_s = rest_s
        self.action = action
        self.argument = argument


class Bucket:
    """A token bucket that refills continuously and is full at first. An amount above its size takes all of it."""

    __slots__ = ("_level", "_size", "_updated_s", "rate_per_s", "taken")

    def __init__(self, per_min: float, size: float) -> None:
        self.rate_per_s = per_min / 60
        self._size = self._level = max(size, 1e-9)
        self._updated_s = 0.0
        self.taken = 0.0

    def ready_s(self, now_s: float, amount: float) -> float:
        """When `amount` will be there; `now_s` if it is."""
        level = self._level + (now_s - self._updated_s) * self.rate_per_s
        self._level = min(self._size, level)
        self._updated_s = now_s
        missing = (min(self._size, amount)) - self._level
        return now_s if missing <= 1e-9 else now_s + missing / self.rate_per_s

    def take(self, amount: float) -> None:
        """Take what `ready_s` said is there."""
        self.taken += amount
        self._level -= min(self._size, amount)


class Gatekeeper:
    """Lets calls through to one model: at most `size` at once, and at the rate its buckets allow, times `ratio`.

    Without `queued` a call that cannot pass at once is turned away; with it, calls wait in order.
    """

    __slots__ = ("_agenda", "_in_flight", "_queue", "_queued", "_size", "_waking", "requests", "tokens")

    def __init__(
        self, agenda: Agenda, quota: Quota | None, *, queued: bool, size: int | None, ratio: float = 1.0
    ) -> None:
        self._agenda = agenda
        self._queued = queued
        self._size = size
        self._in_flight = 0
        self._waking = False
        self._queue: deque[tuple[float, Action, Any]] = deque()
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        if quota and quota.requests_per_min:
            self.requests = Bucket(quota.requests_per_min * ratio, quota.burst_requests)
        if quota and quota.tokens_per_min:
            self.tokens = Bucket(quota.tokens_per_min * ratio, quota.burst_tokens)

    def ask(self, amount: float, passed: Action, argument: Any) -> bool:
        """Call `passed(argument)` now or later; false: turned away. `amount` is in tokens."""
        if self._queued:
            self._queue.append((amount, passed, argument))
            self._drain(None)
            return True
        if self._ready_s(amount) > self._agenda.now:
            return False
        self._pass(amount, passed, argument)
        return True

    def leave(self) -> None:
        """A call that was let through has ended."""
        self._in_flight -= 1
        if self._queue:
            self._drain(None)

    def _ready_s(self, amount: float) -> float:
        now = self._agenda.now
        if self._size is not None and self._in_flight >= self._size:
            return float("inf")
        ready_s = now
        if self.requests is not None:
            ready_s = self.requests.ready_s(now, 1.0)
        if self.tokens is not None:
            ready_s = max(ready_s, self.tokens.ready_s(now, amount))
        return ready_s

    def _pass(self, amount: float, passed: Action, argument: Any) -> None:
        if self.requests is not None:
            self.requests.take(1.0)
        if self.tokens is not None:
            self.tokens.take(amount)
        self._in_flight += 1
        passed(argument)

    def _drain(self, _: object) -> None:
        queue = self._queue
        while queue:
            ready_s = self._ready_s(queue[0][0])
            if ready_s > self._agenda.now:
                if ready_s < float("inf") and not self._waking:
                    self._waking = True
                    self._agenda.at(ready_s, self._wake, None)
                return
            self._pass(*queue.popleft())

    def _wake(self, _: object) -> None:
        self._waking = False
        self._drain(None)


class Store:
    """Which answers are kept: the least recently used leave above `entries`, and all after `ttl_s`."""

    __slots__ = ("_entries", "_kept", "_ttl_s")

    def __init__(self, entries: int | None, ttl_s: float | None) -> None:
        self._kept: OrderedDict[str, float] = OrderedDict()
        self._entries = entries
        self._ttl_s = ttl_s

    def has(self, key: str, now_s: float) -> bool:
        """True when there is an answer under `key`, which then counts as used."""
        kept_s = self._kept.get(key)
        if kept_s is None or (self._ttl_s is not None and now_s - kept_s > self._ttl_s):
            return False
        self._kept.move_to_end(key)
        return True

    def put(self, key: str, now_s: float) -> None:
        """Keep an answer."""
        self._kept[key] = now_s
        self._kept.move_to_end(key)
        if self._entries is not None and len(self._kept) > self._entries:
            self._kept.popitem(last=False)
