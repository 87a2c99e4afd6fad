"""Servers: what one event loop holds of the servers its calls go to: connections, and an engine under a policy.

One cache and one table of calls in flight serve them all, each server a partition of its own; limits are a server's.
"""

import ssl
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from paceline.accelerate.engine import Engine
from paceline.accelerate.policy import Policy
from paceline.accelerate.record import CallRecord, Listener
from paceline.accelerate.transport import own, patience
from paceline.accelerate.transport.binding import Binding, Source, close_soon
from paceline.accelerate.transport.outgoing import Origin, Outgoing, RequestReader, base_url, origin_of
from paceline.accelerate.transport.settings import TransportSettings
from paceline.errors import ConfigError, Overloaded
from paceline.model.price import price_of
from paceline.wire.client import ClientLimits
from paceline.wire.clients import Client
from paceline.wire.http import HttpRequest, Reply

_READ_BYTES = 1024 * 1024  # an answer up to this size is handed to a sync client in one piece


class Answered(NamedTuple):
    """An answer; the body whole or as it comes."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes | Source

    async def settled(self) -> "Answered":
        """The same with a small body read whole; a stream of events stays one."""
        if isinstance(self.body, bytes):
            return self
        about = dict(self.headers)
        length = about.get(b"content-length", b"")
        if not length.isdigit() or int(length) > _READ_BYTES:
            return self
        try:
            parts = [piece async for piece in self.body]
        finally:
            await self.body.aclose()
        return Answered(self.status, self.headers, b"".join(parts))


class _Server(NamedTuple):
    url: str
    client: Client
    engine: Engine | None  # None: nothing is switched on, calls go straight to the wire


class Servers:
    """The servers of one event loop, by origin. `send` makes a call; `aclose` ends everything."""

    def __init__(self, policy: Policy, settings: TransportSettings, listener: Listener | None) -> None:
        self._policy = policy
        self._settings = settings
        self._listener = listener
        self._active = policy != Policy() or listener is not None
        self._servers: OrderedDict[Origin, _Server] = OrderedDict()
        self._first: Engine | None = None  # whose cache and flights the others use
        self.own = own.OwnTransports(settings, sync=False)
        self.reader = RequestReader()

    def state(self) -> dict[str, dict[str, int]]:
        """What is held now, by the server's URL."""
        return {server.url: _state(server) for server in self._servers.values()}

    def is_plain(self, origin: Origin) -> bool:
        """True when httpx's own transport should do it all: it is needed, and no policy asks for more."""
        if self._active or origin in self._servers:
            return False
        return own.proxy_of(origin, self._settings) is not None

    async def send(self, asked: Outgoing, binding: Binding) -> Answered:
        """Make a call and wait for the head of its answer. Raises UpstreamError, Overloaded, or ValueError for
        headers that cannot be sent; then nothing is held."""
        origin = asked.head.origin
        server = self._servers.get(origin)
        if server is None:
            server = self._open(origin, binding)
        elif len(self._servers) > 1:
            self._servers.move_to_end(origin)
        if server.engine is None:
            return await _straight(server.client, server.url, asked)
        return await _through(server.engine, server.url, asked)

    async def aclose(self) -> None:
        """Close every connection; answers being read end with UpstreamBroken."""
        while self._servers:
            _, server = self._servers.popitem()
            await self._forget(server)
        first, self._first = self._first, None
        if first is not None:
            await first.close()
        await self.own.aclose()

    def _open(self, origin: Origin, binding: Binding) -> _Server:
        self._make_room()
        url = base_url(origin)
        client = self._client(url, binding)
        server = self._servers[origin] = _Server(url, client, self._engine(client, binding) if self._active else None)
        return server

    def _client(self, url: str, binding: Binding) -> Client:
        scheme, _, _ = origin = origin_of(url)
        proxy = own.proxy_of(origin, self._settings)
        if proxy is not None:
            own.tell_once(url)
            transport = self.own.get(binding, proxy)
            return patience.PatientLibraryClient(url, binding.module, transport, owns=False)
        limits = ClientLimits(connections=self._settings.connections, idle_s=self._settings.idle_s)
        tls = self.own.tls(binding) if scheme == "https" else None
        if self._settings.http2 and tls is not None:
            return _http2(url, limits, tls)
        return patience.PatientClient(url, limits=limits, tls=tls)

    def _engine(self, client: Client, binding: Binding) -> Engine:
        if self._first is None:
            price_of("gpt-4o")  # loads the price list (0.2 s) now, before any caller's patience with a server counts
        # Keys hold the tenant, tenants hold the server: nothing crosses.
        engine = Engine(
            client,
            self._policy,
            client=lambda url: self._client(url, binding),  # of the policy's own deployments
            beside=self._first,
            listener=self._heard,
        )
        self._first = self._first or engine
        return engine

    def _heard(self, record: CallRecord) -> None:
        patience.heard(record)
        if self._listener is not None:
            self._listener(record)

    def _make_room(self) -> None:
        """Forget the least recently used server that has nothing under way. Overloaded when all have."""
        if len(self._servers) < self._settings.servers:
            return
        for origin, server in self._servers.items():
            if not _is_busy(server):
                del self._servers[origin]
                self.reader.forget()  # what the engine noted on heads
                close_soon(self._forget(server))
                return
        msg = f"calls to {len(self._servers)} servers are under way, as many as TransportSettings.servers allows"
        raise Overloaded(msg, retry_after_s=1.0)

    async def _forget(self, server: _Server) -> None:
        if server.engine is not None and server.engine is not self._first:  # its cache serves the others
            await server.engine.close()
        await server.client.close()


async def _through(engine: Engine, url: str, asked: Outgoing) -> Answered:
    """Call by way of the policy; the caller's patience is kept here, since others may share the call."""
    told = patience.Patience(asked.connect_s, asked.read_s)
    token = patience.PATIENCE.set(told)
    try:
        head = asked.head
        request = HttpRequest(head.method, head.target, head.headers, asked.body, notes=head.notes)
        outcome = engine.handle(request, head.caller)
        if not isinstance(outcome, Reply):
            outcome = await told.wait(outcome, url)
    finally:
        patience.PATIENCE.reset(token)
    told.raise_failure(url)
    body = outcome.body
    if isinstance(body, list):
        body = b"".join(body)
    if not isinstance(body, bytes):
        body = patience.Timed(body, asked.read_s, url)  # type: ignore[arg-type]
    return Answered(outcome.status, outcome.headers, body)


async def _straight(client: Client, url: str, asked: Outgoing) -> Answered:
    """Call the server and nothing else."""
    head = asked.head
    told = patience.Patience(asked.connect_s, asked.read_s)
    token = patience.PATIENCE.set(told)
    try:
        reply = await told.wait(client.request(head.method, head.target, head.plain_headers, asked.body), url)
    finally:
        patience.PATIENCE.reset(token)
    if reply.done:  # small answers are all here with their head
        return Answered(reply.status, reply.headers, await reply.read())
    return Answered(reply.status, reply.headers, patience.Timed(patience.Direct(reply), asked.read_s, url))


def _http2(url: str, limits: ClientLimits, tls: ssl.SSLContext) -> Client:
    try:
        from paceline.accelerate.transport.http2 import PatientHttp2Client  # optional dependency
    except ImportError as error:
        msg = "TransportSettings.http2 needs the h2 package: pip install 'paceline[transport]'"
        raise ConfigError(msg) from error
    return PatientHttp2Client(url, limits=limits, tls=tls)


def _is_busy(server: _Server) -> bool:
    return bool(server.client.busy) or (server.engine is not None and server.engine.is_busy)


def _state(server: _Server) -> dict[str, int]:
    if server.engine is not None:
        return server.engine.state()
    return {"upstream_busy": server.client.busy, "upstream_idle": server.client.idle}
