"""Real sockets for tests: a runner, a raw client, and a server that plays scripted answers byte by byte."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop
from tests.patience import PATIENCE_S

from paceline.wire.http import Handler, HttpRequest
from paceline.wire.intake import Intake
from paceline.wire.server import Server, ServerLimits, serve

T = TypeVar("T")

RESET = "reset"  # cut the connection with RST
CLOSE = "close"
STALL = "stall"  # say nothing more until the other side leaves
Step = bytes | str | asyncio.Event  # bytes are sent, an event is waited for


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop, bounded in time."""

    async def bounded() -> T:
        async with asyncio.timeout(PATIENCE_S):
            return await main

    return uvloop.run(bounded())


def known(intake: Intake, data: bytes) -> HttpRequest | None:
    """The request in `data` where a session would take it without the parser."""
    return None if intake.known_head is None else intake.known_head.request(data)


async def raw(port: int, data: bytes) -> bytes:
    """Send bytes, return everything the server says until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await reader.read()
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def serving(handler: Handler, **limits: float) -> AsyncIterator[Server]:
    """A running server of ours, closed at once at the end."""
    server = await serve(handler, "127.0.0.1", 0, limits=ServerLimits(**limits))  # type: ignore[arg-type]
    try:
        yield server
    finally:
        await server.close(0.0)


async def until(condition: Any) -> None:
    """Let the loop run until `condition()` holds."""
    while not condition():  # noqa: ASYNC110 - the condition is anything
        await asyncio.sleep(0.001)


def ok(body: bytes, *headers: bytes) -> bytes:
    """A plain answer of status 200."""
    lines = [b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def answer(status: int, body: bytes = b"", *headers: bytes) -> bytes:
    """A plain answer of any status."""
    return ok(body, *headers).replace(b"200 OK", b"%d X" % status, 1)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


@dataclass
class ScriptedServer:
    """Plays `script` to every request; with `scripts`, the n-th list to the n-th request, the last one ever after."""

    script: list[Step] = field(default_factory=list)
    scripts: list[list[Step]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)  # head and body as received
    port: int = 0
    open: int = 0  # connections
    connections: int = 0  # ever

    @property
    def url(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                body = await reader.readexactly(int(lengths[0].split(b":")[1])) if lengths else b""
                self.requests.append(head + body)
                scripts = self.scripts or [self.script]
                for step in scripts[min(len(self.requests), len(scripts)) - 1]:
                    await self._play(step, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _play(self, step: Step, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if isinstance(step, bytes):
            writer.write(step)
            await writer.drain()
            await asyncio.sleep(0)
        elif isinstance(step, asyncio.Event):
            await step.wait()
        elif step == STALL:
            await reader.read()
            raise ConnectionError(step)
        elif step == RESET:
            writer.transport.abort()
            raise ConnectionError(step)
        else:
            raise ConnectionError(step)


@contextlib.asynccontextmanager
async def scripted(*script: Step, scripts: list[list[Step]] | None = None) -> AsyncIterator[ScriptedServer]:
    """A running ScriptedServer; every connection is closed at the end."""
    server = ScriptedServer(list(script), scripts or [])
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(server.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
