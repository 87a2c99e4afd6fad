"""httpx's own transports, for what ours does not reach: proxies and uploads. With a policy, it still applies."""

import logging
import ssl
from typing import Any
from urllib.request import getproxies, proxy_bypass

from paceline.accelerate.transport.binding import Binding
from paceline.accelerate.transport.outgoing import OWN_PREFIX, Origin, base_url
from paceline.accelerate.transport.settings import TransportSettings
from paceline.wire.client import ClientLimits
from paceline.wire.library_client import library_transport

log = logging.getLogger("paceline.accelerate")

_told: set[str] = set()


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
        if proxy is not None:
            tell_once(base_url(origin))
        return self.get(binding, proxy)

    def get(self, binding: Binding, proxy: str | None) -> Any:
        """The transport for a proxy, or for none."""
        found = self._transports.get((binding, proxy))
        if found is None:
            module, settings = binding.module, self._settings
            found = self._transports[binding, proxy] = library_transport(
                module,
                module.HTTPTransport if self._sync else module.AsyncHTTPTransport,
                proxy=proxy,
                http2=settings.http2,
                limits=ClientLimits(connections=settings.connections, idle_s=settings.idle_s),
                verify=settings.verify,
                trust_env=settings.trust_env,
            )
        return found

    def close(self) -> None:
        """Close them, of a sync transport."""
        while self._transports:
            self._transports.popitem()[1].close()

    async def aclose(self) -> None:
        """Close them, of an async transport."""
        while self._transports:
            await self._transports.popitem()[1].aclose()


def tell_once(url: str) -> None:
    """Say, once, that a server is reached through httpx's own transport. Not through which proxy: it may hold a
    password."""
    if url not in _told:
        _told.add(url)
        log.warning("%s is reached through httpx's own transport: a proxy is set", url)
