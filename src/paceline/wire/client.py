"""The client side of HTTP/1.1: a keep-alive pool to one server, streamed answers, and a time limit on every phase.

`connect`, `Connection`, `Exchange` and `encode_request` are the layer below, for callers who do without the pool.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import msgspec

from paceline.errors import ConfigError, UpstreamBroken, UpstreamError, UpstreamTimeout
from paceline.wire.connection import Connection, Exchange, connect, encode_request, encode_request_line
from paceline.wire.framing import EncodedHeaders, encode_headers
from paceline.wire.http import Take
from paceline.wire.known_answer import KnownAnswers

__all__ = [
    "ClientLimits",
    "ClientReply",
    "Connection",
    "EncodedHeaders",
    "Exchange",
    "HttpClient",
    "Timeouts",
    "connect",
    "encode_headers",
    "encode_request",
]

_LINES, _LINE_BYTES = 256, 1024  # request lines remembered, of targets not longer than this
_HIGH_WATER = 256 * 1024  # bytes waiting for a slow consumer before the connection is no longer read


class ClientLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one client."""

    connections: int = 8192  # above it, requests wait for a free one in order
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

    status = 0
    headers: list[tuple[bytes, bytes]]
    done = False  # the whole answer is here, or it failed
    error: UpstreamError | None = None  # why it ended early
    _bytes = 0  # waiting in `_pieces`
    _expired: tuple[str, float] | None = None
    _paused = False
    _waiter: "asyncio.Future[None] | None" = None
    _take: Take | None = None  # who is given pieces as they arrive
    _held: Awaitable[None] | None = None  # what it asked us to wait for
    _failure: Exception | None = None  # what it raised
    _listener: Callable[[], None] | None = None

    def __init__(
        self,
        client: "HttpClient",
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        request: bytes | None = None,
    ) -> None:
        """`request`: what was sent, where it may be sent once more because the connection was a kept one."""
        self._client = client
        self._connection = connection
        self._loop = loop
        self._request = request
        self._pieces: deque[bytes] = deque()  # arrived, not taken
        self.seen_s = loop.time()  # when the server was last heard of

    def header(self, name: bytes) -> bytes | None:
        """First value of a header (lower-case name)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def __aiter__(self) -> "ClientReply":
        return self

    async def __anext__(self) -> bytes:
        """The next piece of the body, framing removed. UpstreamBroken or UpstreamTimeout when it ends early."""
        while not self._pieces:
            if self.done:
                raise self.error or StopAsyncIteration
            await self.news()
        return self._next()

    def _next(self) -> bytes:
        data = self._pieces.popleft()
        self._bytes -= len(data)
        if self._paused and self._bytes < _HIGH_WATER // 2:
            self._paused = False
            self.seen_s = self._loop.time()  # it was us who did not listen
            self._connection.resume()
        return data

    async def forward(self, take: Take) -> None:
        """Give every piece to `take` as it arrives, without a turn of the task in between; returns at the end.

        `take` answers with what must be awaited before it wants the next piece, or None. Errors are those of
        iteration, and whatever `take` raises.
        """
        while True:
            while self._pieces:
                held = take(self._next())
                if held is not None:
                    await held
            if self.done:
                if self.error is not None:
                    raise self._failure or self.error
                return
            self._take = take
            try:
                await self.news()
            finally:
                self._take = None
            held, self._held = self._held, None
            if held is not None:
                await held

    async def read(self) -> bytes:
        """The rest of the body. UpstreamBroken when it is larger than the client's limit, or as in iteration."""
        limit_bytes = self._client.limits.body_bytes
        if self.done and self.error is None and self._bytes <= limit_bytes:  # the usual case
            return self.read_now()
        return b"".join(await self._read_on(limit_bytes))

    def read_now(self) -> bytes:
        """The rest of the body of an answer that is all here (`done`, without an `error`)."""
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._bytes = 0
        return body

    async def _read_on(self, limit_bytes: int) -> list[bytes]:
        pieces, size = [], 0
        try:
            async for data in self:
                pieces.append(data)
                size += len(data)
                if size > limit_bytes:
                    msg = f"{self._client.base_url} sent more than {limit_bytes} bytes"
                    raise UpstreamBroken(msg, target=self._client.base_url)
        finally:
            self.close()
        return pieces

    def close(self) -> None:
        """Give up what has not arrived. Nothing happens when the answer is complete."""
        if not self.done:
            self._connection.abort()

    def listen(self, listener: Callable[[], None] | None) -> None:
        """Call `listener` when the head arrives, when so much waits that no more is read, and when the answer is over.

        Once where that is the same moment. It is called by the connection and must not raise. None: no more.
        """
        self._listener = listener

    async def arrived(self) -> "ClientReply":
        """To await after `begin`: the reply whose head is here, see `HttpClient.head_of`."""
        return await self._client.head_of(self)

    @property
    def to_repeat(self) -> bytes | None:
        """The request, if it has to be sent again: the server closed the kept connection before it answered a byte."""
        broken = self.done and not self.status and isinstance(self.error, UpstreamBroken)
        return self._request if broken and not self._connection.answered else None

    def news(self) -> "asyncio.Future[None]":
        """To await: something has arrived since, or it ended. One waits at a time."""
        waiter = self._waiter = self._loop.create_future()
        return waiter

    # --- Exchange ------------------------------------------------------------------------------------------------

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head arrived."""
        self.status, self.headers = status, headers
        self.seen_s = self._loop.time()
        if self._listener is not None:
            self._listener()
        if self._waiter is not None:
            self._wake(self._waiter)

    def on_body(self, data: bytes) -> None:
        """A piece of the body arrived."""
        self.seen_s = self._loop.time()
        if self._take is not None:
            self._hand_on(data, self._take)
            return
        self._pieces.append(data)
        self._bytes += len(data)
        if self._bytes > _HIGH_WATER and not self._paused:
            self._paused = True
            self._connection.pause()
            if self._listener is not None:
                self._listener()
        if self._waiter is not None:
            self._wake(self._waiter)

    def _hand_on(self, data: bytes, take: Take) -> None:
        try:
            self._held = take(data)
        except Exception as error:  # noqa: BLE001 - raised again in `forward`
            self._take, self._failure = None, error
            self._connection.abort()
            return
        if self._held is not None:  # what comes meanwhile waits here
            self._take = None
            if self._waiter is not None:
                self._wake(self._waiter)

    def on_whole(self, status: int, headers: list[tuple[bytes, bytes]], body: list[bytes], reusable: bool) -> None:
        """All of it arrived at once."""
        self.status, self.headers = status, headers
        if body:
            self._pieces.extend(body)
            self._bytes = len(body[0]) if len(body) == 1 else sum(map(len, body))
        self.done = True
        self.seen_s = self._loop.time()
        self._client.give_back(self, self._connection, reusable=reusable)
        if self._listener is not None:
            self._listener()
        if self._waiter is not None:
            self._wake(self._waiter)

    def on_done(self, error: Exception | None, reusable: bool) -> None:
        """The answer is complete or failed; the connection goes back."""
        self.done = True
        if error is not None:
            self.error = self._translate(error)
        if self._paused:
            self._connection.resume()
        self._client.give_back(self, self._connection, reusable=reusable)
        if self._listener is not None:
            self._listener()
        if self._waiter is not None:
            self._wake(self._waiter)

    def _wake(self, waiter: "asyncio.Future[None]") -> None:
        self._waiter = None
        if not waiter.done():  # whoever waited may have been cancelled
            waiter.set_result(None)

    def _translate(self, error: Exception) -> UpstreamError:
        target = self._client.base_url
        if self._expired is None:
            return UpstreamBroken(f"{target}: {error}", target=target)
        phase, limit_s = self._expired
        what = "did not begin to answer" if phase == "first_byte" else "fell silent in its answer"
        return UpstreamTimeout(f"{target} {what} for {limit_s:g} s", target=target, phase=phase, limit_s=limit_s)

    def check_time(self, now_s: float) -> float:
        """Give up when the server has been silent too long. Otherwise: when to look again, on the loop's clock."""
        timeouts = self._client.timeouts
        phase, limit_s = ("silence", timeouts.silence_s) if self.status else ("first_byte", timeouts.first_byte_s)
        if self._paused:  # it is us who do not listen
            return now_s + limit_s
        if self.seen_s + limit_s <= now_s:
            self._expired = (phase, limit_s)
            self._connection.abort()
        return self.seen_s + limit_s


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
        self._host, self._port, self.authority, self._prefix, secure = split_url(base_url)
        self._tls = (tls or _tls_context()) if secure else None
        self._idle: deque[tuple[float, Connection]] = deque()  # since when; the newest right
        self._busy: set[ClientReply] = set()
        self._free = self.limits.connections
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._watch: asyncio.TimerHandle | None = None
        self._lines: dict[tuple[str, str], bytes] = {}
        self._known = KnownAnswers()
        # Kept because asking for it costs a system call in Python 3.11 (getpid).
        self._loop: asyncio.AbstractEventLoop | None = None

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
        reply = self.begin(method, target, headers, body)
        if reply is None:
            line = self._lines.get((method, target)) or self._line(method, target)
            data = encode_request(method, target, self.authority, headers, body, line=line)
            reply = await self._send(data, data)
        return await self.head_of(reply)

    def begin(
        self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> ClientReply | None:
        """Send a request now, over a kept connection; None where there is none, or others wait for one.

        Await `arrived` of its reply, or `listen` to it; to `close` it gives it up.
        """
        if not self._idle or self._free <= 0 or self._waiting:
            return None
        line = self._lines.get((method, target)) or self._line(method, target)
        data = encode_request(method, target, self.authority, headers, body, line=line)
        connection = self._kept()
        if connection is None:
            return None
        self._free -= 1
        return self._start(connection, data, data)

    async def head_of(self, reply: ClientReply) -> ClientReply:
        """The reply, once its head is here; another one in its place where it had to be sent again. See `request`."""
        try:
            while not (reply.status or reply.done):
                await reply.news()
        except BaseException:
            reply.close()
            raise
        if reply.status:
            return reply
        data = reply.to_repeat
        if data is not None:
            return await self.head_of(await self._send(data, None))
        error = reply.error
        assert error is not None  # noqa: S101 - it is done without a head
        raise error

    async def _send(self, data: bytes, again: bytes | None) -> ClientReply:
        """Send a request when there is room; over a connection opened for it unless it may be sent `again`."""
        if self._free > 0 and not self._waiting:
            self._free -= 1
        else:
            await self._turn()
        connection = self._kept() if again is not None and self._idle else None
        if connection is None:
            return self._start(await self._open(), data, None)
        return self._start(connection, data, again)

    def _start(self, connection: Connection, data: bytes, again: bytes | None) -> ClientReply:
        loop = self._loop or self._enter_loop()
        reply = ClientReply(self, connection, loop, again)
        self._busy.add(reply)
        if self._watch is None:
            self._watch = loop.call_later(self._least_s, self._check_time)
        connection.start(data, reply)
        return reply

    def _enter_loop(self) -> asyncio.AbstractEventLoop:
        """The loop this client lives in: the one of its first request."""
        self._loop = asyncio.get_running_loop()
        return self._loop

    def _line(self, method: str, target: str) -> bytes:
        """A request line, kept for the next request."""
        line = encode_request_line(method, self._prefix + target, self.authority)
        if len(self._lines) >= _LINES:
            self._lines.clear()
        if len(target) <= _LINE_BYTES:
            self._lines[method, target] = line
        return line

    async def warm(self, connections: int) -> None:
        """Open connections ahead of the first requests, up to as many as this. Raises as `request` does."""
        count = min(connections, self._free) - self.idle
        opened = await asyncio.gather(*(self._warm_one() for _ in range(count)), return_exceptions=True)
        for outcome in opened:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _warm_one(self) -> None:
        self._free -= 1
        connection = await self._open()
        self._release()
        self._idle.appendleft((asyncio.get_running_loop().time(), connection))

    async def close(self) -> None:
        """Close every connection; answers being read end with UpstreamBroken."""
        while self._idle:
            self._idle.pop()[1].abort()
        for reply in list(self._busy):
            reply.close()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        await asyncio.sleep(0)  # transports close in the loop's next turn

    def give_back(self, reply: ClientReply, connection: Connection, *, reusable: bool) -> None:
        """Take a connection back after its exchange; called by the reply."""
        self._busy.discard(reply)
        self._free += 1
        if self._waiting:
            self._pass_turn()
        if reusable:
            self._idle.append((reply.seen_s, connection))

    # --- time --------------------------------------------------------------------------------------------------------

    @property
    def _least_s(self) -> float:
        """No answer expires sooner than this after it was begun or heard of."""
        return min(self.timeouts.first_byte_s, self.timeouts.silence_s, self.limits.idle_s)

    def _check_time(self) -> None:
        """Look after answers and kept connections: one timer for all of them, as a timer an exchange costs too much.

        Nothing expires unseen: what begins before the next look cannot expire before it.
        """
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        next_s = now_s + self._least_s
        for reply in list(self._busy):
            expires_s = reply.check_time(now_s)
            if now_s < expires_s < next_s:
                next_s = expires_s
        idle = self._idle
        while idle and (idle[0][1].closed or now_s - idle[0][0] >= self.limits.idle_s):
            idle.popleft()[1].abort()
        if idle:
            next_s = min(next_s, idle[0][0] + self.limits.idle_s)
        self._watch = loop.call_at(next_s, self._check_time) if self._busy or idle else None

    # --- connections -------------------------------------------------------------------------------------------------

    async def _turn(self) -> None:
        """Wait for the right to use a connection, in order."""
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
        self._pass_turn()

    def _pass_turn(self) -> None:
        while self._waiting and self._free > 0:
            turn = self._waiting.popleft()
            if not turn.done():
                self._free -= 1
                turn.set_result(None)

    def _kept(self) -> Connection | None:
        """The most recently used connection that is still open, if any."""
        while self._idle:
            connection = self._idle.pop()[1]
            if not connection.closed:
                return connection
        return None

    async def _open(self) -> Connection:
        """A new connection; the right to it is given back when there is none."""
        timeout_s = self.timeouts.connect_s
        try:
            connection = await connect(self._host, self._port, tls=self._tls, timeout_s=timeout_s)
        except BaseException as error:
            self._release()
            if isinstance(error, TimeoutError):
                msg = f"{self.base_url} could not be reached in {timeout_s:g} s"
                raise UpstreamTimeout(msg, target=self.base_url, phase="connect", limit_s=timeout_s) from error
            if isinstance(error, OSError):
                msg = f"{self.base_url} cannot be reached: {error.strerror or error}"
                raise UpstreamBroken(msg, target=self.base_url) from error
            raise
        connection.known = self._known
        return connection


def split_url(base_url: str) -> tuple[str, int, str, str, bool]:
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
