"""One HTTP/1.1 connection to a server, low level: one exchange at a time, callbacks only.

The load driver uses this as it is; `client` builds a pool with time limits on it.
"""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Protocol, cast

import httptools

_HEAD_BYTES = 256 * 1024  # of an answer; above it the connection is broken off


class Exchange(Protocol):
    """Who hears of one request's answer. Called from the event loop; `on_done` exactly once, last."""

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Status and headers (lower-case names) have arrived."""

    def on_body(self, data: bytes) -> None:
        """Some bytes of the body, at least one."""

    def on_done(self, error: Exception | None, reusable: bool) -> None:
        """Complete, or failed with a ConnectionError. `reusable`: the connection can `start` another exchange."""


def encode_request(
    method: str, target: str, host: str, headers: Sequence[tuple[bytes, bytes]], body: bytes = b""
) -> bytes:
    """The bytes of one request. `host` and content-length are added; `headers` must have neither.

    Raises ValueError when a part holds a line break (it would be a second header or request).
    """
    parts = [f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n".encode("latin-1")]
    parts += [b"%b: %b\r\n" % header for header in headers]
    if body or method in ("POST", "PUT", "PATCH"):
        parts.append(b"content-length: %d\r\n" % len(body))
    head = b"".join(parts)
    if head.count(b"\n") != len(parts) + 1 or head.count(b"\r") != len(parts) + 1:
        msg = f"a request line or header holds a line break: {head[:200]!r}"
        raise ValueError(msg)
    return head + b"\r\n" + body


async def connect(host: str, port: int, *, tls: ssl.SSLContext | None = None, timeout_s: float = 10.0) -> "Connection":
    """Open a connection. Raises OSError (unreachable, TLS failure) or TimeoutError. The caller ends it with `abort`."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(timeout_s):
        _, connection = await loop.create_connection(
            Connection, host, port, ssl=tls, server_hostname=host if tls else None
        )
    return connection


class Connection(asyncio.Protocol):
    """A keep-alive connection. `start` one exchange, wait for its `on_done`, start the next if it was reusable."""

    __slots__ = (
        "_complete",
        "_exchange",
        "_head_bytes",
        "_headers",
        "_keep_alive",
        "_no_body",
        "_parser",
        "_transport",
        "_until_close",
        "answered",
        "closed",
    )

    def __init__(self) -> None:
        self._exchange: Exchange | None = None
        self._head_bytes = 0  # received of the head so far; -1 once it is complete
        self._parser = httptools.HttpResponseParser(self)
        self.closed = False
        self.answered = False  # a byte of the current exchange's answer has come

    @property
    def busy(self) -> bool:
        """True while an exchange is under way."""
        return self._exchange is not None

    def start(self, data: bytes, exchange: Exchange) -> None:
        """Send an encoded request and report its answer to `exchange`. RuntimeError when one is under way.

        On a connection that has closed meanwhile, `on_done` is called with the error before this returns.
        """
        if self._exchange is not None:
            msg = "this connection is busy with another exchange"
            raise RuntimeError(msg)
        self._exchange = exchange
        self._headers: list[tuple[bytes, bytes]] = []
        self._complete = self._until_close = self._keep_alive = False
        self._no_body = data.startswith(b"HEAD ")
        self._head_bytes = 0
        self.answered = False
        if self.closed:
            self._finish(ConnectionResetError("the connection was closed before the request was sent"))
        else:
            self._transport.write(data)

    def abort(self) -> None:
        """Close now. An exchange under way ends with an error."""
        self.closed = True
        self._transport.abort()
        self._finish(ConnectionAbortedError("the connection was given up before the answer was complete"))

    def pause(self) -> None:
        """Stop reading: the consumer is slower than the sender."""
        if not self.closed:
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read again after `pause`."""
        if not self.closed:
            self._transport.resume_reading()

    # --- transport -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop: connected, TLS included."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        """Called by the loop: parse, then report an answer that is now complete."""
        if self._exchange is None:  # nobody asked: bytes here would become the next request's answer
            self.abort()
            return
        self.answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the server switched protocols without being asked")
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not valid HTTP: {error.__context__ or error}")
        else:
            if self._complete:
                self._finish(None)
            elif self._head_bytes >= 0:
                self._head_bytes += len(data)
                if self._head_bytes > _HEAD_BYTES:
                    self._fail("the answer's head is too large")

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop: the end of a body without a length, else the end of the exchange."""
        self.closed = True
        if self._exchange is not None and self._until_close and exc is None:
            self._finish(None)
        elif self._exchange is not None:
            reason = f": {exc}" if exc else ""
            self._finish(ConnectionResetError(f"the connection was closed before the answer was complete{reason}"))

    def on_message_begin(self) -> None:
        """Called by the parser, as are the following: an answer starts."""
        if self._complete:
            msg = "more was sent than one answer"
            raise ConnectionError(msg)
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole; interim answers (1xx) are passed over."""
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue, 103 Early Hints: the real head follows
            return
        self._head_bytes = -1
        framed = status in (204, 304) or any(n in (b"content-length", b"transfer-encoding") for n, _ in self._headers)
        self._until_close = not framed
        assert self._exchange is not None  # noqa: S101 - data_received drops bytes nobody asked for
        self._exchange.on_head(status, self._headers)
        if self._no_body:  # the parser cannot be told, and would wait for one
            self._complete = True
            self._keep_alive = self._until_close = False

    def on_body(self, body: bytes) -> None:
        """Part of the body, chunk framing removed."""
        if self._exchange is not None:
            self._exchange.on_body(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._head_bytes < 0:
            # Reported after the parser returns: surplus bytes in the same packet must spoil the connection first.
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()

    def _fail(self, message: str) -> None:
        """Break the connection off; an answer that was complete before the trouble still counts."""
        self.closed = True
        self._transport.abort()
        self._finish(None if self._complete else ConnectionError(message))

    def _finish(self, error: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        reusable = error is None and not self.closed and not self._until_close and self._keep_alive
        if error is None and not reusable and not self.closed:
            self.closed = True
            self._transport.close()
        exchange.on_done(error, reusable)
