"""A client for servers that are to be asked over HTTP/2: few connections, many calls at once on each.

What a caller gives up is given up at the server, which a library's client does not do: httpx leaves the stream open,
and the provider goes on writing, and charging for, an answer that nobody reads.
"""

import asyncio
import ssl
from collections.abc import Sequence

from paceline.errors import ConfigError, UpstreamBroken, UpstreamTimeout
from paceline.wire.client import ClientLimits, Timeouts, split_url
from paceline.wire.connection import encode_request_line
from paceline.wire.framing import encode_headers
from paceline.wire.http2_connection import Http2Connection, Http2Reply

# The client writes them itself, or HTTP/2 forbids them (RFC 9113, 8.2.2).
_DROPPED = frozenset(
    [
        b"host",
        b"content-length",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    ]
)


class Http2Client:
    """Requests to one server. Whoever makes it closes it.

    Args:
        base_url: https://, a path in it is put before every target.
        limits: As HttpClient's; a connection more is opened when all have as many calls as the server allows.
        timeouts: As HttpClient's.
        tls: Its protocols (ALPN) are set to HTTP/2 alone.

    Raises:
        ConfigError: the URL is not https.
    """

    def __init__(
        self,
        base_url: str,
        *,
        limits: ClientLimits | None = None,
        timeouts: Timeouts | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.limits = limits or ClientLimits()
        self.timeouts = timeouts or Timeouts()
        self._host, self._port, self._authority, self._prefix, secure = split_url(base_url)
        if not secure:
            msg = f"HTTP/2 is agreed on in TLS, so it needs an https URL; got {base_url!r}"
            raise ConfigError(msg)
        self._tls = tls or ssl.create_default_context()
        self._connections: list[Http2Connection] = []
        self._connecting = asyncio.Lock()
        self._changed = asyncio.Event()  # a connection has more room than before, or is gone
        self._watch: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> int:
        """Exchanges under way."""
        return sum(connection.busy for connection in self._connections)

    @property
    def idle(self) -> int:
        """Connections without a call."""
        return sum(not connection.busy for connection in self._connections)

    async def request(
        self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> Http2Reply:
        """Send a request and wait for the head of its answer. Errors and `target` as in HttpClient.

        Sent again, once, where the server says that it did nothing. Cancelling tells the server.
        """
        encode_headers(headers)  # the same checks: no line breaks, no spaces
        encode_request_line(method, self._prefix + target, self._authority)
        head = [
            (b":method", method.encode()),
            (b":authority", self._authority.encode()),
            (b":scheme", b"https"),
            (b":path", (self._prefix + target).encode("latin-1")),
            *((name.lower(), value) for name, value in headers if name.lower() not in _DROPPED),
        ]
        if body or method in ("POST", "PUT", "PATCH"):
            head.append((b"content-length", b"%d" % len(body)))
        for again in (False, True):
            connection = await self._with_room()
            reply = connection.start(head, body, self.timeouts.silence_s)
            await self._head(reply)
            if reply.status:
                return reply
            if again or not reply.untouched:
                break
        assert reply.error is not None  # noqa: S101 - it is done without a head
        raise reply.error

    def begin(self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"") -> None:
        """Nothing: a request here needs a task."""

    async def close(self) -> None:
        """Close every connection; answers being read end with UpstreamBroken."""
        for connection in self._connections[:]:
            connection.abort()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        await asyncio.sleep(0)  # transports close in the loop's next turn

    async def _head(self, reply: Http2Reply) -> None:
        limit_s = self.timeouts.first_byte_s
        try:
            async with asyncio.timeout(limit_s):
                while not (reply.status or reply.done):
                    await reply.news()
        except TimeoutError as error:
            reply.close()
            msg = f"{self.base_url} did not begin to answer for {limit_s:g} s"
            raise UpstreamTimeout(msg, target=self.base_url, phase="first_byte", limit_s=limit_s) from error
        except BaseException:
            reply.close()
            raise

    async def _with_room(self) -> Http2Connection:
        """A connection that takes one more request; opened where there is none."""
        while True:
            async with self._connecting:  # whoever waits here takes what the one before opened
                for connection in self._connections:
                    if connection.has_room:
                        return connection
                if len(self._connections) < self.limits.connections:
                    opened = await self._open()
                    self._connections.append(opened)  # not in one line: meanwhile `_tidy` may make a new list
                    return opened
                self._changed.clear()
            await self._changed.wait()

    async def _open(self) -> Http2Connection:
        limit_s = self.timeouts.connect_s
        try:
            async with asyncio.timeout(limit_s):
                connection = await self._connect()
        except TimeoutError as error:
            msg = f"{self.base_url} could not be reached in {limit_s:g} s"
            raise UpstreamTimeout(msg, target=self.base_url, phase="connect", limit_s=limit_s) from error
        except OSError as error:
            msg = f"{self.base_url} cannot be reached: {error}"
            raise UpstreamBroken(msg, target=self.base_url) from error
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(self.limits.idle_s, self._close_idle)
        return connection

    async def _connect(self) -> Http2Connection:
        """A connection whose bounds the server has told."""
        self._tls.set_alpn_protocols(["h2"])
        transport, connection = await asyncio.get_running_loop().create_connection(
            lambda: Http2Connection(self.base_url, self.limits.body_bytes, self._tidy),
            self._host,
            self._port,
            ssl=self._tls,
            server_hostname=self._host,
        )
        try:
            if transport.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
                msg = f"{self.base_url} does not speak HTTP/2; ask it over HTTP/1.1"
                raise UpstreamBroken(msg, target=self.base_url)
            await connection.ready
            if connection.closed:
                msg = "it closed the connection at once"
                raise ConnectionError(msg)
        except BaseException:
            connection.abort()
            raise
        return connection

    def _tidy(self) -> None:
        """Forget connections that are gone, and wake who waits for room."""
        self._connections = [connection for connection in self._connections if not connection.closed]
        self._changed.set()

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        oldest_s = loop.time() - self.limits.idle_s
        for connection in self._connections[:]:
            if not connection.busy and connection.idle_since_s <= oldest_s:
                connection.abort()
        self._watch = loop.call_later(self.limits.idle_s, self._close_idle) if self._connections else None
