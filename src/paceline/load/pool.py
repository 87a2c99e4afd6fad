"""Connections to the target: kept alive, capped, the most recently used first."""

import asyncio
import resource
import socket
from collections import deque
from typing import Protocol

from paceline.errors import ConfigError
from paceline.load.address import Address, Connector
from paceline.load.answer import Heads
from paceline.load.attempt import Attempt
from paceline.load.line import Line, Owner
from paceline.load.readiness import Readiness

__all__ = ["Address", "Pool", "PoolOwner", "connection_limit"]

_CONNECTING_AT_ONCE = 32  # catching up after a hiccup must not become a storm of new connections
_SPARE_DESCRIPTORS = 128  # left to everything else this process has open
_MOST = 2048


class PoolOwner(Owner, Protocol):
    """Whoever sends requests through the pool."""

    def refused(self, attempt: Attempt) -> None:
        """No connection could be opened for it."""


def connection_limit(wanted: int | None, default: int | None) -> int:
    """How many connections may be open: what was asked for, else what is needed or the descriptors allow.

    Raises:
        ConfigError: more are asked for than the process may open.
    """
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE_DESCRIPTORS
    needed = wanted or default
    if needed is not None and needed > allowed:
        msg = f"{needed} connections need more descriptors than the {allowed} there are: raise `ulimit -n`"
        raise ConfigError(msg)
    return needed or min(_MOST, allowed)


class Pool:
    """At most `allowed` lines, the most recently used first. Requests that find none idle wait in order.

    `allowed` is the owner's to move, up to `limit`. Whoever creates the pool closes it.
    """

    def __init__(self, address: Address, limit: int, readiness: Readiness, heads: Heads, owner: PoolOwner) -> None:
        self.limit = self.allowed = limit
        self.waiting: deque[Attempt] = deque()
        self.lines: set[Line] = set()
        self._connector = Connector(address)
        self._readiness, self._heads, self._owner = readiness, heads, owner
        self.idle: list[Line] = []  # the short way adds to it
        self._opening: set[asyncio.Task[None]] = set()  # awaited by close()

    async def warm(self, count: int) -> None:
        """Open up to `count` connections before the start.

        Raises:
            ServiceError: not even the first could be opened; says why.
        """
        self._add(await self._connector.first())
        left = min(count, self.allowed) - len(self.lines)
        while left > 0:
            wave = min(left, _CONNECTING_AT_ONCE)
            opened = await asyncio.gather(*(self._connector.open() for _ in range(wave)), return_exceptions=True)
            for outcome in opened:
                if isinstance(outcome, BaseException):
                    if not isinstance(outcome, OSError | TimeoutError):
                        raise outcome
                    left = 0  # the rest are opened when needed, and their failure then is a sample
                else:
                    self._add(outcome)
            left -= wave

    def idle_line(self) -> Line | None:
        """A line to begin a request on now, if there is one."""
        idle = self.idle
        while idle:
            line = idle.pop()
            if not line.closed:
                return line
            self.lines.discard(line)
        return None

    def wait(self, attempt: Attempt) -> None:
        """Send it as soon as a line is free."""
        self.waiting.append(attempt)
        self._grow()

    def send_again(self, attempt: Attempt) -> None:
        """Send it first of all, on a new line: the server has begun to close connections of the idle ones' age."""
        self.drop_idle()
        self.waiting.appendleft(attempt)
        self._grow()

    def release(self, line: Line) -> None:
        """Take a line back after its request."""
        if line.closed:
            self.lines.discard(line)
            if self.waiting:
                self._grow()
        elif self.waiting:
            line.begin(*self.waiting.popleft())
        else:
            self.idle.append(line)

    def drop_idle(self) -> None:
        """Close what is idle."""
        for line in self.idle:
            line.close()
            self.lines.discard(line)
        self.idle.clear()

    def allow(self, count: int) -> None:
        """Let there be this many lines, at least those that are there and at most `limit`."""
        self.allowed = min(self.limit, max(count, 1))
        self._grow()

    def spare(self) -> None:
        """Open one more, beyond what was allowed: what comes next will find none idle."""
        if len(self._opening) < _CONNECTING_AT_ONCE and self._count() < self.limit:
            self.allowed = min(self.limit, max(self.allowed, self._count() + 1))
            self._opening.add(asyncio.get_running_loop().create_task(self._open_one()))

    async def close(self) -> None:
        """Close every line and give up opening more. Requests under way are forgotten."""
        self.waiting.clear()
        for line in self.lines:
            line.close()
        self.lines.clear()
        self.idle.clear()
        for task in self._opening:
            task.cancel()
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _add(self, connected: socket.socket) -> Line:
        line = Line(connected, self._readiness, self._heads, self._owner)
        self.lines.add(line)
        self.idle.append(line)
        return line

    def _grow(self) -> None:
        opening = self._opening
        while len(opening) < min(len(self.waiting), _CONNECTING_AT_ONCE) and self._count() < self.allowed:
            opening.add(asyncio.get_running_loop().create_task(self._open_one()))

    def _count(self) -> int:
        """Lines there are and those being opened. Closed idle ones are only found when they are wanted."""
        count = len(self.lines) + len(self._opening)
        if count >= self.allowed and any(line.closed for line in self.idle):
            self.idle[:] = [line for line in self.idle if not line.closed]
            self.lines = {line for line in self.lines if not line.closed}
            count = len(self.lines) + len(self._opening)
        return count

    async def _open_one(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine of ours runs in its task
        try:
            line = self._add(await self._connector.open())
        except (OSError, TimeoutError):
            self._opening.discard(task)
            if self.waiting:
                self._owner.refused(self.waiting.popleft())
        else:
            self._opening.discard(task)
            if self.waiting:
                self.idle.pop()  # the one just added
                line.begin(*self.waiting.popleft(), reused=False)
        finally:
            self._opening.discard(task)
        self._grow()
