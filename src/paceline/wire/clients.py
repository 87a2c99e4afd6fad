"""Which client reaches a server: HTTP/1.1, HTTP/2, or by way of a proxy.

`HttpClient` speaks HTTP/1.1 to the server itself, a tenth of a library's cost; `Http2Client` does so over the state
machine of `h2`; proxies are left to a library that many keep well (`LibraryClient`, httpx). All are a `Client`.
"""

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Protocol
from urllib.parse import urlsplit

from paceline.errors import ConfigError
from paceline.wire.client import ClientLimits, ClientReply, HttpClient, Timeouts
from paceline.wire.http import Take


class IncomingReply(Protocol):
    """An answer whose head has arrived. Take its body to the end, in one of three ways, or `close` it."""

    status: int
    headers: list[tuple[bytes, bytes]]  # names in lower case
    done: bool  # the whole answer is here, or it failed

    def header(self, name: bytes) -> bytes | None:
        """First value of a header (lower-case name)."""

    def __aiter__(self) -> AsyncIterator[bytes]: ...

    async def __anext__(self) -> bytes: ...

    async def forward(self, take: Take) -> None:
        """Give every piece to `take` as it arrives; returns at the end."""

    async def read(self) -> bytes:
        """The rest of the body."""

    def close(self) -> None:
        """Give up what has not arrived."""


class Client(Protocol):
    """Sends requests to one server. Whoever makes it closes it. Errors are UpstreamTimeout and UpstreamBroken."""

    base_url: str
    timeouts: Timeouts

    @property
    def busy(self) -> int:
        """Exchanges under way."""

    @property
    def idle(self) -> int:
        """Connections kept for the next request, where it is known."""

    async def request(
        self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> IncomingReply:
        """Send a request and wait for the head of its answer."""

    def begin(
        self, method: str, target: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b""
    ) -> ClientReply | None:
        """Send a request now, if that needs no waiting and no task: else None. Await `arrived` of its reply."""

    async def close(self) -> None:
        """Close every connection."""


def client_for(
    base_url: str,
    *,
    proxy: str | None = None,
    http2: bool = False,
    limits: ClientLimits | None = None,
    timeouts: Timeouts | None = None,
    tls: ssl.SSLContext | None = None,
) -> Client:
    """The client that reaches `base_url`: through `proxy` (http, https, socks5; HTTP/1.1), over HTTP/2, or neither.

    Raises ConfigError when a URL is wrong or a library is needed and missing (`pip install 'paceline[transport]'`).
    """
    if proxy is not None:
        from paceline.wire.library_client import through_httpx  # optional dependency

        return through_httpx(base_url, proxy=proxy, limits=limits, timeouts=timeouts, tls=tls)
    if http2:
        try:
            from paceline.wire.http2_client import Http2Client  # optional dependency
        except ImportError as error:
            msg = "HTTP/2 needs the h2 package: pip install 'paceline[transport]'"
            raise ConfigError(msg) from error
        return Http2Client(base_url, limits=limits, timeouts=timeouts, tls=tls)
    return HttpClient(base_url, limits=limits, timeouts=timeouts, tls=tls)


def proxy_for(base_url: str, environment: Mapping[str, str]) -> str | None:
    """The proxy that HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY (or in lower case) prescribe; None: none."""

    def said(name: str) -> str | None:
        return environment.get(name) or environment.get(name.upper()) or None

    parts = urlsplit(base_url)
    for entry in (said("no_proxy") or "").replace(" ", "").split(","):
        name = entry.removeprefix("*").lstrip(".").lower()
        host = parts.netloc.rpartition("@")[2].lower() if ":" in name else (parts.hostname or "")
        if entry == "*" or (name and (host == name or host.endswith("." + name))):
            return None
    return said(f"{parts.scheme}_proxy") or said("all_proxy")
