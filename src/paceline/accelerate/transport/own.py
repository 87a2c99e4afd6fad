"""httpx's own transport where ours does not reach: proxies, HTTP/2, uploads. With a policy, the policy still applies.

`OwnTransports` makes the module's, `BridgeClient` is such a transport in the shape of our client, for the engine.
"""

import logging
import ssl
from typing import Any, cast
from urllib.request import getproxies, proxy_bypass

from paceline.accelerate.transport.binding import Binding, Source, close_soon
from paceline.accelerate.transport.outgoing import OWN_PREFIX, Origin, base_url
from paceline.accelerate.transport.patience import FOREVER_S, PATIENCE
from paceline.accelerate.transport.settings import TransportSettings
from paceline.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from paceline.wire.client import ClientReply, HttpClient, Timeouts

log = logging.getLogger("paceline.accelerate")

_BODY_BYTES = 64 * 1024 * 1024  # of an answer that is read whole, as the client's
_PHASES = {"ConnectTimeout": "connect", "TimeoutException": "silence"}
_told: set[str] = set()
_NOT_MADE = ("ConnectError", "ProxyError", "UnsupportedProtocol")


def proxy_of(origin: Origin, settings: TransportSettings) -> str | None:
    """URL of the proxy this origin is reached through: the one set, or what the environment says."""
    if settings.proxy is not None or not settings.trust_env:
        return settings.proxy
    scheme, raw_host, _ = origin
    host = raw_host.decode("ascii")
    proxies = getproxies()
    found = proxies.get(scheme) or proxies.get("all")
    return found if found and not proxy_bypass(host) else None


class OwnTransports:
    """The module's own transports, made when first needed; one for each proxy. `sync` says of which kind."""

    def __init__(self, settings: TransportSettings, *, sync: bool) -> None:
        self._settings = settings
        self._sync = sync
        self._transports: dict[tuple[Binding, str | None], Any] = {}
        self._tls: dict[Binding, ssl.SSLContext] = {}

    def tls(self, binding: Binding) -> ssl.SSLContext:
        """The module's TLS settings, and so the same trusted roots; made once, which takes milliseconds."""
        context = self._tls.get(binding)
        if context is None:
            verify = self._settings.verify
            context = binding.module.create_ssl_context(verify=verify, trust_env=self._settings.trust_env)
            if context is not verify:  # the caller's own is not ours to change
                context.set_alpn_protocols(["http/1.1"])
            self._tls[binding] = context
        return context

    def for_request(self, binding: Binding, request: Any) -> Any:
        """The transport that sends this request; our own headers are taken off it."""
        origin = (request.url.scheme, request.url.raw_host, request.url.port)
        for name in [name for name in request.headers if name.startswith(OWN_PREFIX.decode())]:
            del request.headers[name]
        proxy = proxy_of(origin, self._settings)
        if proxy is not None or self._settings.http2:
            tell_once(base_url(origin), self._settings)
        return self.get(binding, proxy)

    def get(self, binding: Binding, proxy: str | None) -> Any:
        """The transport for a proxy, or for none."""
        found = self._transports.get((binding, proxy))
        if found is None:
            module, settings = binding.module, self._settings
            kind = module.HTTPTransport if self._sync else module.AsyncHTTPTransport
            limits = module.Limits(
                max_connections=settings.connections,
                max_keepalive_connections=settings.connections,
                keepalive_expiry=settings.idle_s,
            )
            common = {"verify": settings.verify, "trust_env": settings.trust_env, "http2": settings.http2}
            found = self._transports[binding, proxy] = kind(limits=limits, proxy=proxy, **common)
        return found

    def close(self) -> None:
        """Close them, of a sync transport."""
        while self._transports:
            self._transports.popitem()[1].close()

    async def aclose(self) -> None:
        """Close them, of an async transport."""
        while self._transports:
            await self._transports.popitem()[1].aclose()


def tell_once(url: str, settings: TransportSettings) -> None:
    """Say, once, that a server is reached through httpx's own transport. Not through which proxy: it may hold a
    password."""
    if url not in _told:
        _told.add(url)
        why = "HTTP/2 is asked for" if settings.http2 else "a proxy is set"
        log.warning("%s is reached through httpx's own transport: %s", url, why)


class BridgeClient(HttpClient):
    """An HttpClient over a transport of the module, which is not its own to close."""

    def __init__(self, base_url: str, binding: Binding, transport: Any) -> None:
        timeouts = Timeouts(first_byte_s=FOREVER_S, silence_s=FOREVER_S)  # each caller keeps its own time
        super().__init__(base_url, timeouts=timeouts, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))  # neither is used
        self.under_way = 0
        self.failures: type[Exception] = binding.module.TransportError
        self._binding = binding
        self._transport = transport

    @property
    def busy(self) -> int:
        """Answers under way."""
        return self.under_way

    @property
    def idle(self) -> int:
        """0: the transport keeps its connections to itself."""
        return 0

    async def request(self, method: str, target: str, headers: Any = (), body: bytes = b"") -> ClientReply:
        """As HttpClient.request, errors included."""
        patience = PATIENCE.get(None)
        limits = {} if patience is None else {"timeout": {"connect": patience.connect_s}}
        request = self._binding.module.Request(
            method, self.base_url + target, headers=list(headers), content=body, extensions=limits
        )
        try:
            response = await self._transport.handle_async_request(request)
        except self.failures as error:
            failure = self.translate(error)
            if patience is not None:
                patience.failure = failure
            raise failure from failure.__cause__ or error
        self.under_way += 1
        return cast("ClientReply", _BridgeReply(self, response))

    def translate(self, error: Exception) -> UpstreamError:
        """Ours for one of the module's."""
        names = [kind.__name__ for kind in type(error).__mro__]
        phase = next((_PHASES[name] for name in names if name in _PHASES), None)
        if phase is not None:
            msg = f"{self.base_url}: {error or type(error).__name__}"
            return UpstreamTimeout(msg, target=self.base_url, phase=phase, limit_s=0.0)
        failure = UpstreamBroken(f"{self.base_url}: {error or type(error).__name__}", target=self.base_url)
        if any(name in _NOT_MADE for name in names):
            failure.__cause__ = OSError(str(error))  # as the wire says that a connection was not made
        return failure

    async def close(self) -> None:
        """Nothing: the transport serves other origins too."""


class _BridgeReply:
    """What the engine needs of a ClientReply, over a response of the module."""

    def __init__(self, client: BridgeClient, response: Any) -> None:
        self.status: int = response.status_code
        self.headers: list[tuple[bytes, bytes]] = [(name.lower(), value) for name, value in response.headers.raw]
        self.done = False
        self._client = client
        self._source: Source = response.stream
        self._pieces = response.stream.__aiter__()

    def header(self, name: bytes) -> bytes | None:
        """First value of a header (lower-case name)."""
        return next((value for key, value in self.headers if key == name), None)

    def __aiter__(self) -> "_BridgeReply":
        return self

    async def __anext__(self) -> bytes:
        """The next piece of the body."""
        try:
            piece: bytes = await self._pieces.__anext__()
        except StopAsyncIteration:
            self._end()
            raise
        except self._client.failures as error:
            self._end()
            failure = self._client.translate(error)
            raise failure from failure.__cause__ or error
        return piece

    async def read(self) -> bytes:
        """The rest of the body."""
        parts, size = [], 0
        try:
            async for piece in self:
                parts.append(piece)
                size += len(piece)
                if size > _BODY_BYTES:
                    msg = f"{self._client.base_url} sent more than {_BODY_BYTES} bytes"
                    raise UpstreamBroken(msg, target=self._client.base_url)
        finally:
            self.close()
        return b"".join(parts)

    def close(self) -> None:
        """Give up what has not arrived; the transport does so in a task of its own."""
        if not self.done:
            self._end()

    def _end(self) -> None:
        if not self.done:
            self.done = True
            self._client.under_way -= 1
            close_soon(self._source.aclose())
