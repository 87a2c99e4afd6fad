"""Reading requests strictly: the bytes of one connection in, whole requests or one refusal out. No socket here.

httptools (llhttp) reads the grammar. What it is lenient about and two readers could understand differently is refused
here: RFC 9112 sections 3.2 (target and host), 6.1 and 6.3 (framing), 7.1.1 (chunk extensions), 6.5 (trailers).
"""

import re

import httptools
import msgspec

from paceline.wire.http import Headers, HttpRequest

IDLE, HEAD, BODY = 0, 1, 2  # what of a request is being received

_HOST = re.compile(rb"[A-Za-z0-9._~!$&'()*+;=:%\[\]-]*")
_ABSOLUTE = re.compile(rb"https?://([^/?]*)(.*)", re.IGNORECASE | re.DOTALL)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,10})\r\n", re.IGNORECASE)
_METHODS = {m.encode(): m for m in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")}
_FRAMING_RATIO = 16  # bytes of chunk sizes, extensions and trailers allowed for one byte of body


class ServerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one server. A request above one is refused with the status in the comment."""

    head_bytes: int = 64 * 1024  # 431
    body_bytes: int = 64 * 1024 * 1024  # 413
    receive_s: float = 60.0  # from a request's first byte to its last: 408
    idle_s: float = 75.0  # a connection without a request is closed
    write_s: float = 60.0  # a client that reads nothing this long is cut off
    connections: int = 20_000  # above: 503


class Refusal(Exception):
    """A request that is not accepted; nothing more is read after it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class KnownHead:
    """The head of an accepted request, recognised when it comes again.

    A client sends the same head with every call; only the digits of content-length differ. Bytes equal to what the
    parser accepted, around one to ten digits where it accepted digits, are what it would accept again.
    """

    __slots__ = ("_after", "_after_bytes", "_before", "_length", "_max_bytes", "_request", "_start")

    def __init__(self, request: HttpRequest, before: bytes, length: bytes, after: bytes, max_bytes: int) -> None:
        self._request = request
        self._before = before  # up to the digits
        self._length = length
        self._after = after  # from the line break behind them
        self._start, self._after_bytes = len(before), len(after)
        self._max_bytes = max_bytes

    def request(self, data: bytes) -> HttpRequest | None:
        """The request in `data` when that is this head and its whole body, and nothing else."""
        if not data.startswith(self._before):
            return None
        start = self._start
        end = data.find(b"\r", start, start + 11)
        if not data.startswith(self._after, end):  # also when there is no end
            return None
        length = data[start:end]
        body = data[end + self._after_bytes :]
        if not length.isdigit() or len(body) != int(length) or len(body) > self._max_bytes:
            return None
        was = self._request
        headers = was.headers if length == self._length else _with_length(was.headers, length)
        return HttpRequest(was.method, was.target, headers, body, True, True, False, was.peer, was.notes)


def _with_length(headers: Headers, length: bytes) -> Headers:
    return [(name, length if name == b"content-length" else value) for name, value in headers]


class Intake:
    """What one client sends. `feed` it; take whole requests from `requests`; look at `refusal` afterwards."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_chunked",
        "_headers",
        "_limits",
        "_parser",
        "_peer",
        "_received_bytes",
        "_target",
        "_version",
        "expects_continue",
        "known_head",
        "refusal",
        "requests",
        "stage",
    )

    def __init__(self, limits: ServerLimits, peer: str = "") -> None:
        self._limits = limits
        self._peer = peer
        self._parser = httptools.HttpRequestParser(self)
        # Of the request before, while none is being received: what is one whole request with that head need not be fed.
        self.known_head: KnownHead | None = None
        self.requests: list[HttpRequest] = []
        self.refusal: Refusal | None = None
        self.stage = IDLE
        self.expects_continue = False  # the client waits for "100 Continue" before it sends the body

    def feed(self, data: bytes) -> None:
        """Read on. After a refusal nothing is read any more."""
        if self.refusal is not None:
            return
        before = len(self.requests) if self.stage == IDLE else -1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            if self.refusal is None:
                self.refusal = Refusal(400, f"not a valid HTTP/1.1 request: {error}")
        else:
            if self.stage == IDLE:
                if len(self.requests) == before + 1:
                    self._remember(data, self.requests[-1])
            else:
                self._count(len(data))

    def close(self) -> None:
        """Nothing more comes. The parser holds our callbacks: kept, both would be left to the garbage collector."""
        self.known_head = None
        del self._parser

    def _count(self, received_bytes: int) -> None:
        """Bound what the parser swallows without a word: an endless header, chunk extensions, trailers."""
        self._received_bytes += received_bytes
        if self.stage == HEAD:
            if self._received_bytes > self._limits.head_bytes:
                self.refusal = Refusal(431, "the request head is too large")
        elif self._chunked and self._received_bytes > self._limits.head_bytes + _FRAMING_RATIO * (self._body_bytes + 1):
            self.refusal = Refusal(400, "the body is mostly chunk extensions or trailers")

    # --- parser callbacks ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self.stage = HEAD
        self.known_head = None
        self._body_bytes = self._received_bytes = 0
        self._chunked = self.expects_continue = False
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        """Part of the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole header. Trailers are dropped: taken for headers they would say things nobody checked."""
        if self.stage == HEAD:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is whole: refuse what is ambiguous before a byte of the body is looked at."""
        self.stage = BODY
        if self._parser.should_upgrade():  # the parser would take the body for another protocol's bytes
            self._refuse(501, "CONNECT and protocol upgrades are not supported; send plain HTTP/1.1")
        if self._parser.get_method() not in _METHODS:
            self._refuse(501, "this method is not supported")
        self._version = self._parser.get_http_version()
        if self._version not in ("1.1", "1.0"):
            self._refuse(505, f"HTTP/{self._version} is not supported; send HTTP/1.1")
        hosts = self._read_headers()
        if len(hosts) != 1 and (hosts or self._version == "1.1"):
            self._refuse(400, f"a request needs exactly one Host header; got {len(hosts)}")
        self._check_target(hosts[0] if hosts else b"")

    def on_body(self, body: bytes) -> None:
        """Part of the body, chunk framing removed."""
        self._body_bytes += len(body)
        if self._body_bytes > self._limits.body_bytes:
            self._refuse(413, f"the request body is larger than {self._limits.body_bytes} bytes")
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self.stage = IDLE
        parts = self._body
        self.requests.append(
            HttpRequest(
                _METHODS[self._parser.get_method()],
                self._target.decode("latin-1"),
                self._headers,
                parts[0] if len(parts) == 1 else b"".join(parts),
                self._parser.should_keep_alive(),
                self._version != "1.0",
                False,
                self._peer,
            )
        )

    def _read_headers(self) -> list[bytes]:
        """Check framing and size; gives the values of Host."""
        hosts, size = [], len(self._target)
        for name, value in self._headers:
            size += len(name) + len(value) + 4  # colon, space, line break
            if name == b"host":
                hosts.append(value)
            elif name == b"content-length":
                if int(value) > self._limits.body_bytes:
                    self._refuse(413, f"the request body is larger than {self._limits.body_bytes} bytes")
            elif name == b"transfer-encoding":
                if self._chunked or value.strip().lower() != b"chunked" or self._version == "1.0":
                    self._refuse(400, "the only transfer-encoding understood is chunked, once, in HTTP/1.1")
                self._chunked = True
            elif name == b"expect":
                if value.lower() != b"100-continue":
                    self._refuse(417, "the only expectation understood is 100-continue")
                self.expects_continue = self._version == "1.1"
        if size > self._limits.head_bytes:
            self._refuse(431, "the request head is too large")
        return hosts

    def _check_target(self, host: bytes) -> None:
        """One meaning for target and host. An absolute target must name the same host; its path is what counts."""
        target = self._target
        if not _HOST.fullmatch(host):
            self._refuse(400, "the Host header is not a host")
        if b"#" in target:
            self._refuse(400, "a target has no fragment")
        if target.startswith(b"/"):
            return
        if target == b"*":
            if self._parser.get_method() != b"OPTIONS":
                self._refuse(400, "the target * is for OPTIONS only")
            return
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            self._refuse(400, "the target is neither a path nor an http URL")
        elif absolute[1].lower() != host.lower():
            self._refuse(400, "the target names another host than the Host header")
        else:
            self._target = absolute[2] if absolute[2].startswith(b"/") else b"/" + absolute[2]

    def _refuse(self, status: int, message: str) -> None:
        self.refusal = Refusal(status, message)
        raise self.refusal

    def _remember(self, data: bytes, request: HttpRequest) -> None:
        """Keep the head of a request that came in one piece, unless it asks for something of its own."""
        if not request.keep_alive or not request.chunks or self._chunked or self.expects_continue:
            return
        head = data[: len(data) - len(request.body)]
        length = _LENGTH.search(head)
        if length is None or len(head) + 10 > self._limits.head_bytes:
            return
        start, end = length.span(1)
        bare = HttpRequest(request.method, request.target, request.headers, b"", peer=request.peer, notes=request.notes)
        self.known_head = KnownHead(bare, head[:start], head[start:end], head[end:], self._limits.body_bytes)
