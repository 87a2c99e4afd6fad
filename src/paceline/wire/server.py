"""The server side of HTTP/1.1: httptools' parser on an asyncio transport, with nothing between it and the handler.

A handler takes an HttpRequest and gives a Reply, at once or as an awaitable; one that answers at once costs no task.
When the client goes away the handler's task is cancelled and a streaming body is closed.
"""

import asyncio
import contextlib
import logging
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from http import HTTPStatus
from typing import cast

import httptools
import msgspec

from paceline.errors import ConfigError
from paceline.wire.http import Handler, Headers, HttpRequest, Reply

log = logging.getLogger("paceline.wire")

_PIPELINE = 16  # requests parsed ahead on one connection before it is no longer read
_SWEEP_S = 1.0
_STATUS_LINES = {s.value: f"HTTP/1.1 {s.value} {s.phrase}\r\n".encode() for s in HTTPStatus}
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_AT_ONCE = (bytes, list)  # bodies that need no task to be sent


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one server. A request above one is refused with the status in the comment."""

    head_bytes: int = 64 * 1024  # 431
    body_bytes: int = 64 * 1024 * 1024  # 413
    receive_s: float = 60.0  # from a request's first byte to its last: 408
    idle_s: float = 75.0  # a connection without a request is closed
    write_s: float = 60.0  # a client that reads nothing this long is cut off
    connections: int = 20_000  # above: 503


class Server:
    """A listening server; made by `serve`. `port` is the one really bound."""

    def __init__(self, handler: Handler, limits: ServerLimits) -> None:
        self.handler = handler
        self.limits = limits
        self.closing = False
        self.host = ""
        self.port = 0
        self.sessions: set[_Session] = set()
        self._loop = asyncio.get_running_loop()
        self._listener: asyncio.Server | None = None
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)

    async def listen(self, host: str, port: int) -> None:
        """Bind and accept. Raises ConfigError when the address cannot be had."""
        try:
            self._listener = await self._loop.create_server(lambda: _Session(self), host, port, backlog=4096)
        except OSError as error:
            self._sweeper.cancel()
            reason = os.strerror(error.errno) if error.errno else str(error)
            msg = f"cannot listen on {host}:{port}: {reason}; choose another host or port (0 picks a free port)"
            raise ConfigError(msg) from error
        self.host = host
        self.port = int(self._listener.sockets[0].getsockname()[1])

    @property
    def busy(self) -> int:
        """Requests being answered now."""
        return sum(1 for session in self.sessions if session.active is not None)

    async def close(self, grace_s: float = 5.0) -> None:
        """Stop accepting, let requests in flight finish for `grace_s`, then cut them off."""
        self.closing = True
        if self._listener is not None:
            self._listener.close()
        for session in list(self.sessions):
            session.close_if_idle()
        deadline_s = self._loop.time() + grace_s
        while self.sessions and self._loop.time() < deadline_s:  # noqa: ASYNC110 - only at the very end
            await asyncio.sleep(0.005)
        tasks = [session.task for session in self.sessions if session.task is not None]
        for session in list(self.sessions):
            session.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self._sweeper.cancel()

    def _sweep(self) -> None:
        now_s = self._loop.time()
        for session in list(self.sessions):
            session.check_time(now_s)
        self._sweeper = self._loop.call_later(_SWEEP_S, self._sweep)


async def serve(handler: Handler, host: str, port: int, *, limits: ServerLimits | None = None) -> Server:
    """Start a server on `host`:`port` (0: any free port). The caller awaits `close`. ConfigError: cannot listen."""
    server = Server(handler, limits or ServerLimits())
    await server.listen(host, port)
    return server


class _Refused(Exception):
    """The request being parsed breaks a bound; carries the reply's status and message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Session(asyncio.Protocol):
    """One client connection: parses requests, answers them in the order they came."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_drained",
        "_ended",
        "_head_bytes",
        "_headers",
        "_parser",
        "_queue",
        "_reading_paused",
        "_refusal",
        "_server",
        "_since_s",
        "_stage",
        "_target",
        "_transport",
        "active",
        "task",
    )

    def __init__(self, server: Server) -> None:
        self._server = server
        self._queue: deque[HttpRequest | Reply] = deque()
        self._parser = httptools.HttpRequestParser(self)
        self._drained: asyncio.Future[None] | None = None  # set while the client reads slower than we write
        self._refusal: _Refused | None = None
        self._reading_paused = False
        self._ended = False  # nothing more is answered on this connection
        self._stage = "idle"  # what is being received: "idle", "head", "body"
        self._since_s = 0.0
        self._head_bytes = 0
        self.active: HttpRequest | None = None
        self.task: asyncio.Task[None] | None = None

    # --- transport -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass
        self._since_s = asyncio.get_running_loop().time()
        self._server.sessions.add(self)
        if self._server.closing or len(self._server.sessions) > self._server.limits.connections:
            self._enqueue(_error_reply(503, "the server takes no more connections; try again later"))

    def data_received(self, data: bytes) -> None:
        if self._ended or self._refusal is not None:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            refused = self._refusal or _Refused(400, f"not a valid HTTP/1.1 request: {error}")
            self._refusal = refused
            self._enqueue(_error_reply(refused.status, str(refused)))
        else:
            # The parser hands over a header only when it is whole, so an endless one has to be counted here.
            if self._stage == "head":
                self._head_bytes += len(data)
                if self._head_bytes > self._server.limits.head_bytes:
                    self._refusal = _Refused(431, "the request head is too large")
                    self._enqueue(_error_reply(431, "the request head is too large"))

    def eof_received(self) -> None:
        """A half-closed client counts as gone; returning None closes the transport."""

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._server.sessions.discard(self)
        self._queue.clear()
        if self.active is not None:
            self.active.closed = True
        if self.task is not None:
            self.task.cancel()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()
        self._since_s = asyncio.get_running_loop().time()

    def resume_writing(self) -> None:
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
        self._next()

    def close_if_idle(self) -> None:
        """Close unless a request is being received or answered."""
        if self.active is None and not self._queue and self._stage == "idle":
            self._end()

    def abort(self) -> None:
        """Cut the connection now; what was being answered is cancelled."""
        self._ended = True
        self._transport.abort()

    def check_time(self, now_s: float) -> None:
        """Enforce the time limits; called about once a second."""
        limits, since_s = self._server.limits, now_s - self._since_s
        if self._drained is not None:
            if since_s > limits.write_s:
                self.abort()
        elif self._stage != "idle":
            if since_s > limits.receive_s and self._refusal is None:
                self._refusal = _Refused(408, "the request was not received in time")
                self._enqueue(_error_reply(408, "the request was not received in time"))
        elif self.active is None and since_s > limits.idle_s:
            self._end()

    # --- parser callbacks ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._stage = "head"
        self._head_bytes = self._body_bytes = 0
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._since_s = asyncio.get_running_loop().time()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._stage = "body"
        limits, hosts, size = self._server.limits, 0, len(self._target)
        if self._parser.should_upgrade():  # the parser would take the body for another protocol's bytes
            self._refuse(501, "protocol upgrades are not supported; send plain HTTP/1.1")
        for name, value in self._headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
            elif name == b"content-length" and int(value) > limits.body_bytes:
                self._refuse(413, f"the request body is larger than {limits.body_bytes} bytes")
            elif name == b"expect" and value.lower() == b"100-continue" and self.active is None:
                self._transport.write(_CONTINUE)
        if size > limits.head_bytes:
            self._refuse(431, "the request head is too large")
        if hosts != 1 and self._parser.get_http_version() == "1.1":
            self._refuse(400, f"a request needs exactly one Host header; got {hosts}")

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        if self._body_bytes > self._server.limits.body_bytes:
            self._refuse(413, f"the request body is larger than {self._server.limits.body_bytes} bytes")
        self._body.append(body)

    def on_message_complete(self) -> None:
        self._stage = "idle"
        parts = self._body
        self._enqueue(
            HttpRequest(
                method=self._parser.get_method().decode("ascii"),
                target=self._target.decode("latin-1"),
                headers=self._headers,
                body=parts[0] if len(parts) == 1 else b"".join(parts),
                keep_alive=self._parser.should_keep_alive(),
                chunks=self._parser.get_http_version() != "1.0",
            )
        )

    def _refuse(self, status: int, message: str) -> None:
        self._refusal = _Refused(status, message)
        raise self._refusal

    # --- answering -----------------------------------------------------------------------------------------------

    def _enqueue(self, item: HttpRequest | Reply) -> None:
        if isinstance(item, HttpRequest) and not self._queue and self._may_answer:  # the usual case
            self._dispatch(item)
            return
        self._queue.append(item)
        if len(self._queue) >= _PIPELINE and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        self._next()

    @property
    def _may_answer(self) -> bool:
        return self.active is None and self._drained is None and not self._ended

    def _next(self) -> None:
        """Answer what is queued, one after the other, as far as that can be done without waiting."""
        while self._queue and self._may_answer:
            item = self._queue.popleft()
            if isinstance(item, Reply):  # a refusal: the last thing said here
                self._write_whole(item, None)
                self._end()
                return
            self._dispatch(item)
        if self._reading_paused and not self._queue and not self._ended:
            self._reading_paused = False
            self._transport.resume_reading()

    def _dispatch(self, request: HttpRequest) -> None:
        self.active = request
        try:
            outcome = self._server.handler(request)
        except Exception:
            log.exception("handler failed for %s %s", request.method, request.path)
            outcome = _error_reply(500, "the server failed to answer this request")
        if isinstance(outcome, Reply) and isinstance(outcome.body, _AT_ONCE):
            self._write_whole(outcome, request)
            self._finished(request)
        else:
            # Owned by this session: cancelled in connection_lost, awaited by Server.close.
            self.task = asyncio.get_running_loop().create_task(self._answer(request, outcome))

    async def _answer(self, request: HttpRequest, outcome: Reply | Awaitable[Reply]) -> None:
        try:
            reply = outcome if isinstance(outcome, Reply) else await outcome
        except Exception:
            log.exception("handler failed for %s %s", request.method, request.path)
            reply = _error_reply(500, "the server failed to answer this request")
        if isinstance(reply.body, _AT_ONCE):
            self._write_whole(reply, request)
        elif not await self._write_stream(reply, reply.body, request):
            self.task = None
            self.abort()
            return
        self.task = None
        self._finished(request)
        self._next()

    def _keeps(self, request: HttpRequest) -> bool:
        return request.keep_alive and not self._server.closing

    def _finished(self, request: HttpRequest) -> None:
        self.active = None
        if self._stage == "idle":
            self._since_s = asyncio.get_running_loop().time()
        if not self._keeps(request):
            self._end()

    def _end(self) -> None:
        """Close once everything written has been sent."""
        self._ended = True
        self._transport.close()

    def _write_whole(self, reply: Reply, request: HttpRequest | None) -> None:
        """Send a reply that is all here; `request` is None for a refusal, after which the connection ends."""
        body, chunked = reply.body, isinstance(reply.body, list)
        if isinstance(body, list):
            chunked = request is None or request.chunks
            body = b"".join([*(_chunk(piece) for piece in body if piece), b"0\r\n\r\n"] if chunked else body)
        assert isinstance(body, bytes)  # noqa: S101 - the caller looked; narrows the type
        length = None if chunked or reply.status in (204, 304) or _has(reply.headers, b"content-length") else len(body)
        keep_alive = request is not None and self._keeps(request)
        head = _encode_head(reply, length=length, chunked=chunked, keep_alive=keep_alive)
        self._transport.write(head if request is not None and request.method == "HEAD" else head + body)

    async def _write_stream(self, reply: Reply, body: AsyncIterator[bytes], request: HttpRequest) -> bool:
        """Send the body as it comes. False: it ended early, so the connection must be cut."""
        sized = _has(reply.headers, b"content-length")
        chunked = request.chunks and not sized
        request.keep_alive &= chunked or sized
        try:
            self._transport.write(_encode_head(reply, length=None, chunked=chunked, keep_alive=self._keeps(request)))
            if request.method != "HEAD":
                async for data in body:
                    if data:
                        self._transport.write(_chunk(data) if chunked else data)
                    if self._drained is not None:
                        await self._drained
                if chunked:
                    self._transport.write(b"0\r\n\r\n")
        except Exception as error:  # noqa: BLE001 - whatever broke the body, the client has to see it cut
            log.info("a streamed reply was cut: %s", error)
            return False
        finally:
            closer = getattr(body, "aclose", None)
            if closer is not None:
                with contextlib.suppress(RuntimeError):  # "already running": the generator is closing by itself
                    await closer()
        return True


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _has(headers: Headers, name: bytes) -> bool:
    for key, _ in headers:  # noqa: SIM110 - every reply passes here, and `any` with a generator takes twice as long
        if key == name:
            return True
    return False


def _encode_head(reply: Reply, *, length: int | None, chunked: bool, keep_alive: bool) -> bytes:
    parts = [_STATUS_LINES.get(reply.status) or b"HTTP/1.1 %d \r\n" % reply.status]
    parts += [name + b": " + value + b"\r\n" for name, value in reply.headers]
    if length is not None:
        parts.append(b"content-length: %d\r\n" % length)
    elif chunked:
        parts.append(b"transfer-encoding: chunked\r\n")
    parts.append(b"\r\n" if keep_alive else b"connection: close\r\n\r\n")
    return b"".join(parts)


def _error_reply(status: int, message: str) -> Reply:
    """A refusal below any dialect, in the shape most API clients can show."""
    body = msgspec.json.encode({"error": {"message": message, "type": "invalid_request_error", "code": None}})
    return Reply(status, [(b"content-type", b"application/json")], body)
