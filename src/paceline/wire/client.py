"""The client side of HTTP/1.1: a keep-alive pool to one server, with a time limit on every phase of an exchange.

`connect`, `Connection`, `Exchange` and `encode_request` are the layer below, for callers who do without the pool.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Sequence
from urllib.parse import urlsplit

from paceline.errors import ConfigError, UpstreamBroken, UpstreamTimeout
from paceline.wire.client_reply import ClientLimits, ClientReply, Timeouts
from paceline.wire.connection import Connection, Exchange, connect, encode_request, encode_request_line
from paceline.wire.framing import EncodedHeaders, encode_headers
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

        Await `arrived` of its reply, or set its `listener`; to `close` it gives it up.
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
