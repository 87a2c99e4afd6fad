"""A real HTTP/2 server over TLS, for clients that speak it: what it answers to each request is scripted."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import trustme

JSON_200 = [(":status", "200"), ("content-type", "application/json")]
EVENTS_200 = [(":status", "200"), ("content-type", "text/event-stream")]

CUT = "cut"  # reset the stream
REFUSE = "refuse"  # reset it, saying that nothing was done
STALL = "stall"  # say nothing more
GOAWAY = "goaway"  # answer what is under way, take nothing more on this connection
DROP = "drop"  # the connection is gone
Step = list[tuple[str, str]] | bytes | str | asyncio.Event  # a head, a piece, what to do, or what to wait for


@cache
def _authority() -> trustme.CA:
    return trustme.CA()


def trusting() -> ssl.SSLContext:
    """Of a client that trusts the server, and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _authority().configure_trust(context)
    return context


def authority_pem() -> bytes:
    """The authority's certificate, for a process that reads it from a file."""
    return _authority().cert_pem.bytes()


@dataclass
class H2Server:
    """Plays `script` to every request. What it saw is kept for the test to look at."""

    script: list[Step]
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    blocked: int = 0  # answers that wait for their reader
    streams: int = 100  # of one connection, at once
    resets: int = 0  # streams a client gave up
    most_streams: int = 0  # of one connection, at once
    port: int = 0

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"


class _Connection(asyncio.Protocol):
    def __init__(self, server: H2Server) -> None:
        self._server = server
        self._http = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._heads: dict[int, dict[str, str]] = {}
        self._bodies: dict[int, bytearray] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._room = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._transport = transport
        self._server.connections += 1
        self._server.open += 1
        bounds = {h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: self._server.streams}
        self._http.local_settings = h2.settings.Settings(client=False, initial_values=bounds)
        self._http.initiate_connection()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open -= 1
        for task in self._tasks.values():
            task.cancel()

    def data_received(self, data: bytes) -> None:
        for event in self._http.receive_data(data):
            self._heard(event)
        self._flush()

    def _heard(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived():
                self._heads[event.stream_id] = {str(name): str(value) for name, value in event.headers}
                self._bodies[event.stream_id] = bytearray()
                self._server.most_streams = max(self._server.most_streams, len(self._heads) - self._done())
            case h2.events.DataReceived():
                self._bodies[event.stream_id] += event.data
                self._http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self._server.requests.append((self._heads[event.stream_id], bytes(self._bodies[event.stream_id])))
                self._tasks[event.stream_id] = asyncio.create_task(self._answer(event.stream_id))
            case h2.events.StreamReset():
                self._server.resets += 1
                self._tasks[event.stream_id].cancel()
            case h2.events.WindowUpdated():
                self._room.set()

    def _done(self) -> int:
        return sum(task.done() for task in self._tasks.values())

    async def _answer(self, stream: int) -> None:
        with contextlib.suppress(h2.exceptions.ProtocolError):  # the client has left
            for step in self._server.script:
                await self._play(stream, step)
            self._http.end_stream(stream)
            self._flush()

    async def _play(self, stream: int, step: Step) -> None:
        if isinstance(step, list):
            self._http.send_headers(stream, step)
        elif isinstance(step, bytes):
            await self._send(stream, step)
        elif isinstance(step, asyncio.Event):
            await step.wait()
        elif step == CUT:
            self._http.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
        elif step == REFUSE:
            self._http.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
        elif step == GOAWAY:
            self._http.close_connection(last_stream_id=stream)
        elif step == DROP:
            self._transport.abort()
        else:
            await asyncio.Event().wait()
        self._flush()

    async def _send(self, stream: int, data: bytes) -> None:
        while data:
            room = min(self._http.local_flow_control_window(stream), self._http.max_outbound_frame_size)
            if room > 0:
                self._http.send_data(stream, data[:room])
                data = data[room:]
                self._flush()
            else:
                self._room.clear()
                self._server.blocked += 1
                await self._room.wait()
                self._server.blocked -= 1

    def _flush(self) -> None:
        self._transport.write(self._http.data_to_send())


@contextlib.asynccontextmanager
async def h2_serving(
    *script: Step, streams: int = 100, protocols: tuple[str, ...] = ("h2",)
) -> AsyncIterator[H2Server]:
    """A running server."""
    server = H2Server(list(script), streams=streams)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(list(protocols))
    _authority().issue_cert("localhost").configure_cert(context)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: _Connection(server), "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
