"""Connections to the target: kept alive, capped, the most recently used first."""

import asyncio
import contextlib
import resource
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from paceline.errors import ConfigError, ServiceError
from paceline.wire.client import Connection, connect

_CONNECTING_AT_ONCE = 32  # catching up after a hiccup must not become a storm of new connections
_SPARE_DESCRIPTORS = 128  # left to everything else this process has open
_MOST = 2048


class Job(Protocol):
    """Something that wants a connection."""

    def begin(self, connection: Connection, *, reused: bool) -> None:
        """Use it; hand it back with `Pool.release`. `reused`: the server may have closed it meanwhile."""

    def refuse(self, error: Exception) -> None:
        """There is none to be had."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect, and what its URL says beside."""

    url: str
    host: str
    port: int
    tls: ssl.SSLContext | None
    authority: str  # the Host header
    prefix: str  # path before the scenario's paths, without a final slash

    @classmethod
    def parse(cls, url: str, tls: ssl.SSLContext | None = None) -> "Address":
        """Read a base URL. Raises ConfigError. `tls` replaces the default context for https."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            msg = f"{url!r} is not a URL: {error}"
            raise ConfigError(msg) from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"the target must be a URL such as http://127.0.0.1:8000/chat; got {url!r}"
            raise ConfigError(msg)
        secure = parts.scheme == "https"
        context = (tls or ssl.create_default_context()) if secure else None
        authority = parts.netloc.rpartition("@")[2]
        return cls(url, parts.hostname, port or (443 if secure else 80), context, authority, parts.path.rstrip("/"))


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
    """At most `limit` connections. A job that finds none idle waits in order; `close` ends them all."""

    def __init__(self, address: Address, limit: int, *, connect_timeout_s: float = 10.0) -> None:
        self._address = address
        self._limit = limit
        self._timeout_s = connect_timeout_s
        self._idle: list[Connection] = []
        self._waiting: deque[Job] = deque()
        self._open = 0  # idle, in use, and being opened
        self._tasks: set[asyncio.Task[None]] = set()  # connection attempts; awaited by close()

    async def warm(self, count: int) -> None:
        """Open up to `count` connections before the start.

        Raises:
            ServiceError: not even the first could be opened; says why.
        """
        try:
            self._add(await self._connect())
        except (OSError, TimeoutError) as error:
            raise unreachable(self._address, error) from error
        for _ in range(min(count, self._limit) - 1):
            try:
                self._add(await self._connect())
            except (OSError, TimeoutError):
                return  # the rest are opened when needed, and their failure then is a sample

    def submit(self, job: Job) -> None:
        """Give the job a connection now, or as soon as there is one."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                job.begin(connection, reused=True)
                return
            self._open -= 1
        self._waiting.append(job)
        self._grow()

    def withdraw(self, job: Job) -> None:
        """Forget a waiting job; nothing happens if it does not wait."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(job)

    def release(self, connection: Connection, *, reusable: bool, fresh: bool = False) -> None:
        """Take back a connection after its exchange, or take in a fresh one."""
        if not reusable or connection.closed:
            self._open -= 1
            self._grow()
        elif self._waiting:
            self._waiting.popleft().begin(connection, reused=not fresh)
        else:
            self._idle.append(connection)

    def drop_idle(self) -> None:
        """Close what is idle: the server has begun to close connections of that age."""
        self._open -= len(self._idle)
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.abort()

    async def close(self) -> None:
        """Close everything idle and give up connection attempts. Jobs under way end themselves."""
        self._waiting.clear()
        self.drop_idle()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _add(self, connection: Connection) -> None:
        self._open += 1
        self._idle.append(connection)

    async def _connect(self) -> Connection:
        address = self._address
        return await connect(address.host, address.port, tls=address.tls, timeout_s=self._timeout_s)

    def _grow(self) -> None:
        while len(self._tasks) < min(len(self._waiting), _CONNECTING_AT_ONCE) and self._open < self._limit:
            self._open += 1
            task = asyncio.get_running_loop().create_task(self._open_one())
            self._tasks.add(task)

    async def _open_one(self) -> None:
        try:
            connection = await self._connect()
        except (OSError, TimeoutError) as error:
            self._open -= 1
            if self._waiting:
                self._waiting.popleft().refuse(error)
        else:
            self.release(connection, reusable=True, fresh=True)
        finally:
            task = asyncio.current_task()
            assert task is not None  # noqa: S101 - a coroutine of ours runs in its task
            self._tasks.discard(task)
        self._grow()


def unreachable(address: Address, error: Exception) -> ServiceError:
    """Why nothing could be sent, in one sentence."""
    import socket

    where = f"{address.host}:{address.port}"
    match error:
        case socket.gaierror():
            return ServiceError(f"cannot resolve the host name {address.host!r} of {address.url}: check its spelling")
        case ssl.SSLError():
            return ServiceError(f"cannot agree on TLS with {where}: {error.reason or error}")
        case ConnectionRefusedError():
            return ServiceError(f"cannot reach {address.url}: nothing listens on {where}. Is the service running?")
        case TimeoutError():
            return ServiceError(f"cannot reach {address.url}: no answer from {where}. Is the address right?")
    return ServiceError(f"cannot reach {address.url}: {error}")
