"""Address: where the target is; opening connections to it."""

import asyncio
import errno
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from paceline.errors import ConfigError, ServiceError


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect, and what its URL says beside."""

    url: str
    host: str
    port: int
    tls: ssl.SSLContext | None
    authority: str  # the Host header
    prefix: str  # path before the scenario's paths, without a final slash

    @classmethod
    def parse(cls, url: str, tls: ssl.SSLContext | None = None) -> "Address":
        """Read a base URL. Raises ConfigError. `tls` replaces the default context for https."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            msg = f"{url!r} is not a URL: {error}"
            raise ConfigError(msg) from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"the target must be a URL such as http://127.0.0.1:8000/chat; got {url!r}"
            raise ConfigError(msg)
        secure = parts.scheme == "https"
        context = (tls or ssl.create_default_context()) if secure else None
        authority = parts.netloc.rpartition("@")[2]
        return cls(url, parts.hostname, port or (443 if secure else 80), context, authority, parts.path.rstrip("/"))


class Connector:
    """Opens connections to one address, its name resolved once. Cancelling leaves nothing open."""

    def __init__(self, address: Address, *, timeout_s: float = 10.0) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._found: Sequence[_Found] = ()  # the one that worked last first

    async def first(self) -> socket.socket:
        """The first connection of a run. ServiceError when it cannot be opened; says why."""
        try:
            return await self.open()
        except (OSError, TimeoutError) as error:
            raise unreachable(self._address, error) from error

    async def open(self) -> socket.socket:
        """A connected non-blocking socket, TLS agreed. Raises OSError or TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(self._timeout_s):
            if not self._found:
                self._found = await loop.getaddrinfo(self._address.host, self._address.port, type=socket.SOCK_STREAM)
            for place, found in enumerate(self._found):
                try:
                    connected = await self._open_at(found)
                except (ssl.SSLError, TimeoutError):
                    raise
                except OSError:
                    if place == len(self._found) - 1:
                        raise
                else:
                    if place:  # localhost is ::1 before 127.0.0.1, and many servers listen on one of them
                        self._found = [found, *(f for f in self._found if f is not found)]
                    return connected
        raise OSError(errno.EADDRNOTAVAIL, "the host name has no address")

    async def _open_at(self, found: "_Found") -> socket.socket:
        family, kind, protocol, _, where = found
        connected = socket.socket(family, kind, protocol)
        try:
            connected.setblocking(False)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().sock_connect(connected, where)
            if self._address.tls is not None:
                connected = self._address.tls.wrap_socket(
                    connected, server_hostname=self._address.host, do_handshake_on_connect=False
                )
                await _shake_hands(connected)
        except BaseException:
            connected.close()
            raise
        return connected


_Found = tuple[Any, ...]  # what getaddrinfo gives


async def _shake_hands(connected: ssl.SSLSocket) -> None:
    loop = asyncio.get_running_loop()
    while True:
        ready = loop.create_future()
        try:
            connected.do_handshake()
        except ssl.SSLWantReadError:
            watch, forget = loop.add_reader, loop.remove_reader
        except ssl.SSLWantWriteError:
            watch, forget = loop.add_writer, loop.remove_writer
        else:
            return
        watch(connected.fileno(), _wake, ready)
        try:
            await ready
        finally:
            forget(connected.fileno())


def _wake(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


def unreachable(address: Address, error: Exception) -> ServiceError:
    """Why nothing could be sent, in one sentence."""
    where = f"{address.host}:{address.port}"
    match error:
        case socket.gaierror():
            return ServiceError(f"cannot resolve the host name {address.host!r} of {address.url}: check its spelling")
        case ssl.SSLCertVerificationError():
            return ServiceError(
                f"the certificate of {where} is not to be trusted: {error.verify_message}. "
                "--insecure sends requests all the same"
            )
        case ssl.SSLError():
            return ServiceError(f"cannot agree on TLS with {where}: {error.reason or error}")
        case ConnectionRefusedError():
            return ServiceError(f"cannot reach {address.url}: nothing listens on {where}. Is the service running?")
        case TimeoutError():
            return ServiceError(f"cannot reach {address.url}: no answer from {where}. Is the address right?")
    return ServiceError(f"cannot reach {address.url}: {error}")
