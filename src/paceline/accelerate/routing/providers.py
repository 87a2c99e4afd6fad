"""Providers: which server the calls of a dialect go to, and one client for each server."""

from collections.abc import Callable
from urllib.parse import urlsplit

import msgspec

from paceline.errors import ConfigError
from paceline.wire.client import HttpClient
from paceline.wire.clients import Client

_VERSIONS = ("/v1", "/v1beta")


class Providers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base URL of each dialect's provider, with or without the version at its end."""

    openai: str = "https://api.openai.com"
    anthropic: str = "https://api.anthropic.com"
    gemini: str = "https://generativelanguage.googleapis.com"

    @classmethod
    def at(cls, url: str) -> "Providers":
        """One server for every dialect: a simulated provider, another gateway."""
        return cls(openai=url, anthropic=url, gemini=url)

    def base_of(self, dialect: str) -> str:
        """The URL that a request's whole path, version included, is added to."""
        return without_version(getattr(self, dialect))


class Clients:
    """One HttpClient for each server, made when first needed. Whoever makes this closes it."""

    def __init__(self, make: Callable[[str], Client] = HttpClient) -> None:
        """`make` gets scheme, host and port as a URL: the place for time limits, TLS contexts and HTTP proxies."""
        self._make = make
        self._clients: dict[str, Client] = {}

    def at(self, url: str) -> tuple[Client, str]:
        """The client of the URL's server and the URL's path. Raises ConfigError for what is no URL."""
        parts = urlsplit(url)
        if parts.query or parts.fragment:
            msg = f"a provider's URL has no query: {url!r}; a deployment's goes into its `query`"
            raise ConfigError(msg)
        origin = f"{parts.scheme}://{parts.netloc}"
        client = self._clients.get(origin)
        if client is None:
            client = self._clients[origin] = self._make(origin)
        return client, parts.path.rstrip("/")

    @property
    def busy(self) -> int:
        """Connections in use."""
        return sum(client.busy for client in self._clients.values())

    @property
    def idle(self) -> int:
        """Connections kept for the next request."""
        return sum(client.idle for client in self._clients.values())

    async def close(self) -> None:
        """Close every connection; answers being read end with UpstreamBroken."""
        for client in self._clients.values():
            await client.close()


def without_version(url: str) -> str:
    """The URL without a version at its end: SDKs want one there, or not, so both are accepted."""
    url = url.rstrip("/")
    return next((url.removesuffix(version) for version in _VERSIONS if url.endswith(version)), url)
