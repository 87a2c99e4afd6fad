"""Readiness: which of many sockets can be read, at little cost each.

On Linux an epoll of our own is registered with the event loop as one descriptor; when the loop says it has news, all
of it is taken at once, with one look at the clock. A callback through the loop costs 1.5 us more a request
(docs/decisions/0008-load-hot-path.md). Sockets are watched for edges: who is told reads all there is, or asks to be
told again. Where there is no epoll the loop watches each socket.
"""

import asyncio
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

READABLE, WRITABLE = 0x1, 0x4  # EPOLLIN and EPOLLOUT; errors and hang-ups are other bits
_MOST = 256  # events of a wake: then the event loop has its turn
_SLICE = 16  # of them between two looks at what else has come: 0.2 ms of requests
_EDGES = 0x80000000 | 0x2000  # EPOLLET; EPOLLRDHUP, since an end that comes with the last data is no edge of its own

Events = Sequence[tuple[int, int]]  # descriptor, what happened


class Watched(Protocol):
    """A socket with somebody behind it."""

    def ready(self, event: int, now_s: float) -> None:
        """It can be read or written; `now_s` on time.monotonic(), when we heard of it."""


class Readiness:
    """Watches sockets and tells. An exception of whoever is told goes to `fail`. Whoever creates it closes it.

    Whatever has come is given the time when we heard of it, not of its turn: in a burst the last one's turn comes a
    millisecond later, and that millisecond is ours, not the target's.
    """

    def __init__(self, fail: Callable[[Exception], None]) -> None:
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self.watched: dict[int, Watched] = {}
        self._writing: set[int] = set()
        self.take: Callable[[Events, float], None] = self._tell
        self.between: Callable[[], None] | None = None  # called amid a large wake, for what cannot wait
        self._epoll = select.epoll() if sys.platform == "linux" else None
        if self._epoll is not None:
            self._loop.add_reader(self._epoll.fileno(), self._wake)

    def watch(self, descriptor: int, who: Watched) -> None:
        """Tell whenever there is something to read, or an error or the end to be told."""
        self.watched[descriptor] = who
        if self._epoll is not None:
            self._epoll.register(descriptor, READABLE | _EDGES)
        else:
            self._loop.add_reader(descriptor, self._one, descriptor, READABLE)

    def watch_writing(self, descriptor: int, *, on: bool) -> None:
        """Tell as well when there is room, or no longer. Safe to repeat."""
        if on == (descriptor in self._writing):
            return
        (self._writing.add if on else self._writing.discard)(descriptor)
        if self._epoll is not None:
            self._rearm(descriptor)
        elif on:
            self._loop.add_writer(descriptor, self._one, descriptor, WRITABLE)
        else:
            self._loop.remove_writer(descriptor)

    def tell_again(self, descriptor: int) -> None:
        """There is more to read: tell once more, after the others."""
        if self._epoll is not None and descriptor in self.watched:
            self._rearm(descriptor)

    def _rearm(self, descriptor: int) -> None:
        assert self._epoll is not None  # noqa: S101 - the callers looked
        wanted = READABLE | WRITABLE if descriptor in self._writing else READABLE
        self._epoll.modify(descriptor, wanted | _EDGES)

    def forget(self, descriptor: int) -> None:
        """Watch no more. To be called before the socket is closed."""
        if self.watched.pop(descriptor, None) is None:
            return
        is_writing = descriptor in self._writing
        self._writing.discard(descriptor)
        if self._epoll is not None:
            self._epoll.unregister(descriptor)
            return
        self._loop.remove_reader(descriptor)
        if is_writing:
            self._loop.remove_writer(descriptor)

    def close(self) -> None:
        """Forget everything."""
        for descriptor in list(self.watched):
            self.forget(descriptor)
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _wake(self) -> None:
        assert self._epoll is not None  # noqa: S101 - only called where there is one
        poll, taken = self._epoll.poll, 0
        waves: deque[tuple[Events, float]] = deque()  # heard of together
        try:
            events: Events = poll(0, _MOST)
            now_s = time.monotonic()
            while events:
                self.take(events[:_SLICE], now_s)
                taken += _SLICE
                if len(events) > _SLICE:
                    waves.appendleft((events[_SLICE:], now_s))
                if waves and taken < _MOST:
                    fresh = poll(0, _MOST)
                    if fresh:
                        waves.append((fresh, time.monotonic()))
                if waves and self.between is not None:
                    self.between()
                events, now_s = waves.popleft() if waves else ((), 0.0)
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits the scenario
            self._fail(error)

    def _one(self, descriptor: int, event: int) -> None:
        try:
            self.take([(descriptor, event)], time.monotonic())
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits the scenario
            self._fail(error)

    def _tell(self, events: Events, now_s: float) -> None:
        watched = self.watched
        for descriptor, event in events:
            who = watched.get(descriptor)
            if who is not None:  # None: an earlier one of this wake closed it
                who.ready(event, now_s)
