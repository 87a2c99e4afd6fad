"""The client side of HTTP/1.1: a keep-alive pool to one server, streamed answers, and a time limit on every phase.

`connect`, `Connection`, `Exchange` and `encode_request` are the layer below, for callers who do without the pool.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from urllib.parse import urlsplit

import msgspec

from paceline.errors import ConfigError, UpstreamBroken, UpstreamError, UpstreamTimeout
from paceline.wire.connection import Connection, Exchange, connect, encode_request

__all__ = [
    "ClientLimits",
    "ClientReply",
    "Connection",
    "Exchange",
    "HttpClient",
    "Timeouts",
    "connect",
    "encode_request",
]

_HIGH_WATER = 256 * 1024  # bytes waiting for a slow consumer before the connection is no longer read


class ClientLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one client."""

    connections: int = 1024  # above it, requests wait for a free one in order
    idle_s: float = 50.0  # a connection unused this long is closed
    body_bytes: int = 64 * 1024 * 1024  # of an answer that is read whole


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a phase of one exchange may take."""

    connect_s: float = 10.0  # TLS included
    first_byte_s: float = 300.0  # from the request sent to the head of the answer
    silence_s: float = 120.0  # between two pieces of the body


class ClientReply:
    """An answer whose head has arrived: iterate over the pieces of its body as they come, or `read` it whole.

    Take it to the end or `close` it: until then it holds its connection.
    """

    __slots__ = (
        "_bytes",
        "_chunks",
        "_client",
        "_connection",
        "_error",
        "_expired",
        "_paused",
        "_seen_s",
        "_timer",
        "_waiter",
        "done",
        "headers",
        "status",
    )

    def __init__(self, client: "HttpClient", connection: Connection) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.done = False  # the whole answer is here, or it failed
        self._client = client
        self._connection = connection
        self._chunks: deque[bytes] = deque()
        self._bytes = 0  # waiting in `_chunks`
        self._error: UpstreamError | None = None
        self._expired: tuple[str, float] | None = None
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        loop = asyncio.get_running_loop()
        self._seen_s = loop.time()
        self._timer = loop.call_later(client.timeouts.first_byte_s, self._check_time)

    def header(self, name: bytes) -> bytes | None:
        """First value of a header (lower-case name)."""
        return next((value for key, value in self.headers if key == name), None)

    def __aiter__(self) -> "ClientReply":
        return self

    async def __anext__(self) -> bytes:
        """The next piece of the body, framing removed. UpstreamBroken or UpstreamTimeout when it ends early."""
        while not self._chunks:
            if self.done:
                raise self._error or StopAsyncIteration
            await self._wait()
        data = self._chunks.popleft()
        self._bytes -= len(data)
        if self._paused and self._bytes < _HIGH_WATER // 2:
            self._paused = False
            self._connection.resume()
        return data

    async def read(self) -> bytes:
        """The rest of the body. UpstreamBroken when it is larger than the client's limit, or as in iteration."""
        if self.done and self._error is None and self._bytes <= self._client.limits.body_bytes:  # the usual case
            self._bytes = 0
            body = b"".join(self._chunks)
            self._chunks.clear()
            return body
        parts, size = [], 0
        try:
            async for data in self:
                parts.append(data)
                size += len(data)
                if size > self._client.limits.body_bytes:
                    msg = f"{self._client.base_url} sent more than {self._client.limits.body_bytes} bytes"
                    raise UpstreamBroken(msg, target=self._client.base_url)
        finally:
            self.close()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        """Give up what has not arrived. Nothing happens when the answer is complete."""
        if not self.done:
            self._connection.abort()

    async def head(self) -> None:
        """Wait for status and headers; the client has done this before it hands the answer out."""
        while not self.status and not self.done:
            await self._wait()
        if self._error is not None and not self.status:
            raise self._error

    # --- Exchange ------------------------------------------------------------------------------------------------

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head arrived."""
        self.status, self.headers = status, headers
        self._seen_s = asyncio.get_running_loop().time()
        self._wake()

    def on_body(self, data: bytes) -> None:
        """A piece of the body arrived."""
        self._chunks.append(data)
        self._bytes += len(data)
        self._seen_s = asyncio.get_running_loop().time()
        if self._bytes > _HIGH_WATER and not self._paused:
            self._paused = True
            self._connection.pause()
        self._wake()

    def on_done(self, error: Exception | None, reusable: bool) -> None:
        """The answer is complete or failed; the connection goes back."""
        self.done = True
        self._timer.cancel()
        if error is not None:
            self._error = self._translate(error)
        if self._paused:
            self._connection.resume()
        self._client.give_back(self._connection, reusable=reusable)
        self._wake()

    def _translate(self, error: Exception) -> UpstreamError:
        target = self._client.base_url
        if self._expired is None:
            return UpstreamBroken(f"{target}: {error}", target=target)
        phase, limit_s = self._expired
        what = "did not begin to answer" if phase == "first_byte" else "fell silent in its answer"
        return UpstreamTimeout(f"{target} {what} for {limit_s:g} s", target=target, phase=phase, limit_s=limit_s)

    def _check_time(self) -> None:
        """Runs when the limit may have passed. One timer an exchange: moving it at every piece would cost more."""
        timeouts, loop = self._client.timeouts, asyncio.get_running_loop()
        phase, limit_s = ("silence", timeouts.silence_s) if self.status else ("first_byte", timeouts.first_byte_s)
        left_s = limit_s if self._paused else self._seen_s + limit_s - loop.time()
        if left_s > 0:
            self._timer = loop.call_later(left_s, self._check_time)
        else:
            self._expired = (phase, limit_s)
            self._connection.abort()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class HttpClient:
    """Requests to one server over kept-alive connections, the most recently used first. Whoever makes it closes it."""

    def __init__(
        self,
        base_url: str,
        *,
        limits: ClientLimits | None = None,
        timeouts: Timeouts | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`base_url` is http:// or https://, a path in it is put before every target; ConfigError for anything else."""
        self.base_url = base_url.rstrip("/")
        self.limits = limits or ClientLimits()
        self.timeouts = timeouts or Timeouts()
        self._host, self._port, self.authority, self._prefix, secure = _split(base_url)
        self._tls = (tls or _tls_context()) if secure else None
        self._idle: deque[tuple[float, Connection]] = deque()  # since when; the newest right
        self._busy: set[Connection] = set()
        self._free = self.limits.connections
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def busy(self) -> int:
        """Connections in use."""
        return len(self._busy)

    @property
    def idle(self) -> int:
        """Connections kept for the next request."""
        return sum(1 for _, connection in self._idle if not connection.closed)

    async def request(
        self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> ClientReply:
        """Send a request and wait for the head of its answer. `target` is path and query; host is added.

        A kept connection that the server closed before a single byte of the answer is replaced once. Raises
        UpstreamTimeout (phase "connect" or "first_byte") or UpstreamBroken. Cancelling closes the connection.
        """
        data = encode_request(method, self._prefix + target, self.authority, headers, body)
        connection, kept = await self._take(fresh=False)
        try:
            return await self._exchange(connection, data)
        except UpstreamBroken:
            if not kept or connection.answered:
                raise
        connection, _ = await self._take(fresh=True)
        return await self._exchange(connection, data)

    async def close(self) -> None:
        """Close every connection; answers being read end with UpstreamBroken."""
        while self._idle:
            self._idle.pop()[1].abort()
        for connection in list(self._busy):
            connection.abort()
        await asyncio.sleep(0)  # transports close in the loop's next turn

    def give_back(self, connection: Connection, *, reusable: bool) -> None:
        """Take a connection back after its exchange; called by the reply."""
        self._busy.discard(connection)
        self._release()
        now_s = asyncio.get_running_loop().time()
        if reusable:
            self._idle.append((now_s, connection))
        while self._idle and now_s - self._idle[0][0] > self.limits.idle_s:
            self._idle.popleft()[1].abort()

    async def _exchange(self, connection: Connection, data: bytes) -> ClientReply:
        reply = ClientReply(self, connection)
        connection.start(data, reply)
        try:
            await reply.head()
        except BaseException:
            reply.close()
            raise
        return reply

    async def _take(self, *, fresh: bool) -> tuple[Connection, bool]:
        """A connection to use, and whether it was used before; `give_back` ends the use."""
        await self._acquire()
        try:
            connection = None if fresh else self._kept()
            kept = connection is not None
            connection = connection or await self._open()
        except BaseException:
            self._release()
            raise
        self._busy.add(connection)
        return connection, kept

    async def _acquire(self) -> None:
        """Wait for the right to use a connection, in order. A semaphore, without its cost when nobody waits."""
        if self._free > 0 and not self._waiting:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._release()
            raise

    def _release(self) -> None:
        self._free += 1
        while self._waiting and self._free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                self._free -= 1
                turn.set_result(None)

    def _kept(self) -> Connection | None:
        """The most recently used connection that is still open, if any."""
        oldest_s = asyncio.get_running_loop().time() - self.limits.idle_s
        while self._idle:
            since_s, connection = self._idle.pop()
            if connection.closed:
                continue
            if since_s < oldest_s:
                connection.abort()
                continue
            return connection
        return None

    async def _open(self) -> Connection:
        timeout_s = self.timeouts.connect_s
        try:
            connection = await connect(self._host, self._port, tls=self._tls, timeout_s=timeout_s)
        except TimeoutError as error:
            msg = f"{self.base_url} could not be reached in {timeout_s:g} s"
            raise UpstreamTimeout(msg, target=self.base_url, phase="connect", limit_s=timeout_s) from error
        except OSError as error:
            msg = f"{self.base_url} cannot be reached: {error.strerror or error}"
            raise UpstreamBroken(msg, target=self.base_url) from error
        return connection


def _split(base_url: str) -> tuple[str, int, str, str, bool]:
    """Host, port, authority (for the host header), path prefix, whether TLS is used."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError as error:
        msg = f"not a URL: {base_url!r} ({error}); give one like http://127.0.0.1:8080 or https://api.openai.com"
        raise ConfigError(msg) from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        msg = f"not a server's URL: {base_url!r}; give one like http://127.0.0.1:8080 or https://api.openai.com"
        raise ConfigError(msg)
    secure = parts.scheme == "https"
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    authority = host if port is None else f"{host}:{port}"
    return parts.hostname, port or (443 if secure else 80), authority, parts.path.rstrip("/"), secure


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
