"""Readiness: which of many sockets can be read, at little cost each.

On Linux an epoll of our own is registered with the event loop as one descriptor; when the loop says it has news, all
of it is taken at once. A callback through the loop costs 1.5 us more a request (docs/decisions/0006-load-driver.md).
Where there is no epoll the loop watches each socket.
"""

import asyncio
import select
import sys
from collections.abc import Callable

_BATCH = 32  # events before the loop may do something else: 0.4 ms of requests


class Readiness:
    """Watches sockets and calls back. An exception in a callback goes to `fail`. Whoever creates it closes it."""

    def __init__(self, fail: Callable[[Exception], None]) -> None:
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll() if sys.platform == "linux" else None
        if self._epoll is not None:
            self._loop.add_reader(self._epoll.fileno(), self._drain)

    def watch(self, descriptor: int, readable: Callable[[], None]) -> None:
        """Call `readable` whenever there is something to read, or an error or the end to be told."""
        self._readers[descriptor] = readable
        if self._epoll is not None:
            self._epoll.register(descriptor, select.EPOLLIN)
        else:
            self._loop.add_reader(descriptor, self._call, readable)

    def watch_writing(self, descriptor: int, writable: Callable[[], None] | None) -> None:
        """Call `writable` as well, whenever there is room; None: no longer."""
        if writable is not None:
            self._writers[descriptor] = writable
        elif self._writers.pop(descriptor, None) is None:
            return
        if self._epoll is not None:
            self._epoll.modify(descriptor, select.EPOLLIN | (select.EPOLLOUT if writable else 0))
        elif writable is not None:
            self._loop.add_writer(descriptor, self._call, writable)
        else:
            self._loop.remove_writer(descriptor)

    def forget(self, descriptor: int) -> None:
        """Watch no more. To be called before the socket is closed."""
        if self._readers.pop(descriptor, None) is None:
            return
        is_writing = self._writers.pop(descriptor, None) is not None
        if self._epoll is not None:
            self._epoll.unregister(descriptor)
            return
        self._loop.remove_reader(descriptor)
        if is_writing:
            self._loop.remove_writer(descriptor)

    def close(self) -> None:
        """Forget everything."""
        for descriptor in list(self._readers):
            self.forget(descriptor)
        if self._epoll is not None:
            self._loop.remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _drain(self) -> None:
        assert self._epoll is not None  # noqa: S101 - only called where there is one
        readers, readable = self._readers, select.EPOLLIN
        try:
            for descriptor, event in self._epoll.poll(0, _BATCH):
                if event != readable and event & select.EPOLLOUT:
                    writer = self._writers.get(descriptor)
                    if writer is not None:
                        writer()
                    if event == select.EPOLLOUT:
                        continue
                reader = readers.get(descriptor)
                if reader is not None:  # None: an earlier callback of this batch closed it
                    reader()
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits the scenario
            self._fail(error)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception as error:  # noqa: BLE001 - handed to whoever awaits the scenario
            self._fail(error)
