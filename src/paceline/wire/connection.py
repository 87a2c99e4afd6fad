"""One HTTP/1.1 connection to a server, low level: one exchange at a time, callbacks only.

The load driver uses this as it is; `client` builds a pool with time limits on it.
"""

import asyncio
import ssl
from collections.abc import Sequence
from typing import Protocol, cast

import httptools

from paceline.wire.framing import EncodedHeaders, header_lines
from paceline.wire.known_answer import AnswerHeaders, KnownAnswers

_HEAD_BYTES = 256 * 1024  # of an answer; above it the connection is broken off
_FRAMING_RATIO = 16  # bytes of chunk sizes, extensions and trailers allowed for one byte of body
_WITH_BODY = ("POST", "PUT", "PATCH")  # methods that say how long their body is even when it is empty


class Exchange(Protocol):
    """Who hears of one request's answer. Called from the event loop; `on_done` exactly once, last.

    One that also has `on_whole(status, headers, body, reusable)` hears of an answer that came in one piece by that
    alone.
    """

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Status and headers (lower-case names) have arrived."""

    def on_body(self, data: bytes) -> None:
        """Some bytes of the body, at least one."""

    def on_done(self, error: Exception | None, reusable: bool) -> None:
        """Complete, or failed with a ConnectionError. `reusable`: the connection can `start` another exchange."""


def encode_request_line(method: str, target: str, host: str) -> bytes:
    """Request line and host header. ValueError when a part holds a line break, or method or target a space."""
    line = f"{method} {target} HTTP/1.1\r\nhost: {host}\r\n".encode("latin-1")
    if line.count(b"\n") != 2 or line.count(b"\r") != 2 or line.count(b" ") != 3:
        msg = f"a request line holds a space or a line break: {line[:200]!r}"
        raise ValueError(msg)
    return line


def encode_request(
    method: str,
    target: str,
    host: str,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes = b"",
    *,
    line: bytes | None = None,
) -> bytes:
    """The bytes of one request. `host` and content-length are added; `headers` must have neither.

    `line` is what `encode_request_line` gave for these three. Raises ValueError when a part holds a line break (it
    would be a second header or request), or the target a space.
    """
    line = line or encode_request_line(method, target, host)
    lines = headers.lines if isinstance(headers, EncodedHeaders) else header_lines(headers)
    if body or method in _WITH_BODY:
        return b"%b%bcontent-length: %d\r\n\r\n%b" % (line, lines, len(body), body)
    return line + lines + b"\r\n"


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
        "_body_bytes",
        "_complete",
        "_exchange",
        "_headers",
        "_in_head",
        "_keep_alive",
        "_no_body",
        "_parser",
        "_pieces",
        "_received_bytes",
        "_reported",
        "_status",
        "_transport",
        "answered",
        "closed",
        "known",
        "on_body",
    )

    def __init__(self) -> None:
        self._exchange: Exchange | None = None
        self._in_head = False  # the head of an answer is awaited or being received
        self._pieces: list[bytes] = []  # of the body, parsed and not reported yet
        self.on_body = self._pieces.append  # the parser's callback for a part of the body, framing removed
        self._parser = httptools.HttpResponseParser(self)
        self.closed = False
        self.answered = False  # a byte of the current exchange's answer has come
        self.known = KnownAnswers()  # may be shared with other connections to the same server

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
        self._complete = self._keep_alive = self._reported = False
        self._no_body = data.startswith(b"HEAD ")
        self._in_head = True
        self._received_bytes = self._body_bytes = 0
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
        begins = self._in_head and not self._received_bytes and not self._no_body
        if begins:
            found = self.known.read(data)
            if found is not None:
                self._status, self._headers, body = found
                self._keep_alive = True
                self._report_whole(body)
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the server switched protocols without being asked")
        except httptools.HttpParserError as error:
            self._fail(f"the answer is not valid HTTP: {error.__context__ or error}")
        else:
            if self._complete and not self._reported:
                if begins and self._keep_alive:
                    self.known.remember(data, self._status, self._headers, self._pieces)
                pieces = self._pieces
                body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
                pieces.clear()
                self._report_whole(body)
            elif not self._in_head:
                self._report()
                if self._complete:
                    self._finish(None)
                else:
                    self._count(data)
            else:
                self._count(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop: the end of a body without a length, else the end of the exchange."""
        self.closed = True
        if self._exchange is not None and exc is None and not self._in_head and not _is_framed(self._headers):
            self._finish(None)
        elif self._exchange is not None:
            reason = f": {exc}" if exc else ""
            self._finish(ConnectionResetError(f"the connection was closed before the answer was complete{reason}"))
        del self._parser  # it holds our callbacks: kept, both would be left to the garbage collector

    def on_message_begin(self) -> None:
        """Called by the parser, as are the following: an answer starts."""
        if self._complete:
            msg = "more was sent than one answer"
            raise ConnectionError(msg)
        self._headers = AnswerHeaders()

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header. Trailers are dropped: the head has been handed out."""
        if self._in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole; interim answers (1xx) are passed over."""
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue, 103 Early Hints: the real head follows
            return
        self._in_head = False
        self._status = status
        if self._no_body:  # the parser cannot be told, and would wait for one
            self._complete = True

    def on_message_complete(self) -> None:
        """The answer is whole. Reported after the parser returns: surplus bytes must spoil the connection first."""
        if not self._in_head:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()  # unknown once the parser has gone on

    # --- reporting -----------------------------------------------------------------------------------------------

    def _report_whole(self, body: bytes) -> None:
        """Report an answer that came in one piece, in one call where the exchange wants it so."""
        exchange = self._exchange
        on_whole = getattr(exchange, "on_whole", None)
        if on_whole is None:
            if body:
                self._pieces.append(body)
            self._report()
            self._finish(None)
            return
        self._exchange = None
        reusable = self._keep_alive and not self.closed
        on_whole(self._status, self._headers, body, reusable or self._settle())

    def _report(self) -> None:
        """Report what has been parsed. The exchange may abort in between."""
        if not self._reported and self._exchange is not None:
            self._reported = True
            self._exchange.on_head(self._status, self._headers)
        for piece in self._pieces:
            self._body_bytes += len(piece)
            if self._exchange is not None:
                self._exchange.on_body(piece)
        self._pieces.clear()

    def _settle(self) -> bool:
        """After a complete answer: close the connection if it must not be used again. True: it can be."""
        if self.closed:
            return False
        if not self._keep_alive:
            self.closed = True
            self._transport.close()
            return False
        return True

    def _count(self, data: bytes) -> None:
        """Bound what the parser swallows without a word: endless headers, chunk extensions, trailers."""
        self._received_bytes += len(data)
        if self._in_head:
            if self._received_bytes > _HEAD_BYTES:
                self._fail("the answer's head is too large")
        elif self._received_bytes > _HEAD_BYTES + _FRAMING_RATIO * self._body_bytes:
            self._fail("the answer is mostly chunk extensions or trailers")

    def _fail(self, message: str) -> None:
        """Break the connection off; an answer that was complete before the trouble still counts."""
        self.closed = True
        self._transport.abort()
        if not self._in_head:
            self._report()
        self._finish(None if self._complete else ConnectionError(message))

    def _finish(self, error: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.on_done(error, error is None and self._settle())


def _is_framed(headers: list[tuple[bytes, bytes]]) -> bool:
    """True when the head says where the body ends."""
    for name, _ in headers:  # noqa: SIM110 - every answer passes here, and `any` with a generator takes twice as long
        if name in (b"content-length", b"transfer-encoding"):
            return True
    return False
