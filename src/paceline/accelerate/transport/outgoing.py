"""Outgoing: a client's request as the layer takes it, and which requests it does not take."""

import hashlib
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from paceline.accelerate.caller import Caller
from paceline.accelerate.key import TENANT_HEADERS
from paceline.accelerate.transport.binding import Binding
from paceline.accelerate.transport.patience import FOREVER_S

Origin = tuple[str, bytes, int | None]  # scheme, host, port where it is not the scheme's own
Headers = list[tuple[bytes, bytes]]

OWN_PREFIX = b"x-paceline-"
_DROPPED = frozenset({b"host", b"content-length", b"connection"})  # the wire writes them itself
_BEYOND = frozenset({b"transfer-encoding", b"upgrade", b"expect"})  # what a whole HTTP/1.1 request never carries
_WHOSE = TENANT_HEADERS | {b"x-paceline-tenant"}
_HEADS = 256  # remembered


class Head(NamedTuple):
    """What requests of one client have in common; worked out once for equal heads."""

    origin: Origin
    method: str
    target: str
    headers: Headers  # names in lower case
    plain_headers: Headers  # without x-paceline-*, which no server may see
    caller: Caller  # by server, credentials, and the tenant that x-paceline-tenant names
    notes: dict[Any, Any]  # the engine's, see HttpRequest


class Outgoing(NamedTuple):
    """One request."""

    head: Head
    body: bytes
    connect_s: float
    read_s: float  # to the head of the answer, and between two pieces of its body


class RequestReader:
    """Reads the requests of one transport's clients."""

    def __init__(self) -> None:
        self._heads: dict[tuple[object, ...], Head | None] = {}

    def read(self, request: Any, binding: Binding) -> Outgoing | None:
        """What an httpx request asks. None: only httpx's own transport sends it as it is meant.

        That is a body that is not there at once (an upload), a Host header that is not the URL's, another TLS name,
        and schemes other than http and https.
        """
        extensions = request.extensions
        if type(request.stream) is not binding.whole_type or "sni_hostname" in extensions:
            return None
        url, raw = request.url, request.headers.raw
        timeout = extensions.get("timeout") or {}
        connect_s, read_s = timeout.get("connect"), timeout.get("read")
        key = (request.method, url.scheme, url.raw_host, url.port, url.raw_path, *raw)
        try:
            head = self._heads[key]
        except KeyError:
            if len(self._heads) >= _HEADS:
                self._heads.clear()
            head = self._heads[key] = _head(request.method, url, raw)
        if head is None:
            return None
        patience_s = FOREVER_S if read_s is None else read_s
        body = request.read()  # it is there; a redirected request has only not been told so
        return Outgoing(head, body, FOREVER_S if connect_s is None else connect_s, patience_s)

    def forget(self) -> None:
        """Let go of what was worked out."""
        self._heads.clear()


def _head(method: str, url: Any, raw: Headers) -> Head | None:
    if url.scheme not in ("http", "https") or method == "CONNECT":
        return None
    headers = []
    for name, value in raw:
        lower = name.lower()
        if lower in _BEYOND or (lower == b"host" and value != url.netloc):
            return None
        if lower not in _DROPPED:
            headers.append((lower, value))
    plain = [header for header in headers if not header[0].startswith(OWN_PREFIX)]
    origin = (url.scheme, url.raw_host, url.port)
    whose = sorted(header for header in headers if header[0] in _WHOSE)
    return Head(
        origin=origin,
        method=method,
        target=url.raw_path.decode("ascii"),
        headers=headers,
        plain_headers=plain,
        caller=Caller(tenant=_digest(origin, whose), name="in process"),
        notes={},
    )


def _digest(origin: Origin, whose: Headers) -> bytes:
    parts = [base_url(origin).encode(), *(part for header in whose for part in header)]
    return hashlib.sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).digest()


def base_url(origin: Origin) -> str:
    """The origin as a URL."""
    scheme, raw_host, port = origin
    host = raw_host.decode("ascii")
    name = f"[{host}]" if ":" in host else host
    return f"{scheme}://{name}" if port is None else f"{scheme}://{name}:{port}"


def origin_of(url: str) -> Origin:
    """The origin of a server's URL."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").encode("ascii"), parts.port
