"""What the parent and its workers tell each other: JSON lines over a socket pair."""

import asyncio
import socket

import msgspec

from paceline.accelerate.cache import Selection
from paceline.gateway.config import GatewayConfig

_LINE_BYTES = 64 * 1024 * 1024  # a configuration with many thousand keys


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """First line to a worker: who it is and what it serves. Numbers of descriptors are its own."""

    number: int
    workers: int
    listen_fd: int
    table_fd: int
    folder: str
    run: str | None
    record_answers: bool
    started_ns: int
    config: GatewayConfig
    rows: dict[str, int]


class NewConfig(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Answer new calls by this."""

    config: GatewayConfig
    rows: dict[str, int]


class Forget(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Both ways: answers to be dropped. `number` is the asking worker's, and unique with its place."""

    number: int
    worker: int  # who was asked
    selection: Selection


class Forgot(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Both ways: they are; so many entries, in so many processes."""

    number: int
    worker: int
    dropped: int
    processes: int


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Finish what you have, and end."""


class Told(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A worker's answer to its assignment and to every new configuration; `error`: why it does not follow."""

    error: str | None = None


_decode_assignment = msgspec.json.Decoder(Assignment).decode
_decode_order = msgspec.json.Decoder(NewConfig | Forget | Forgot | Stop).decode
_decode_told = msgspec.json.Decoder(Told | Forget | Forgot).decode


class Channel:
    """One end. What is received is None when the other end is gone."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    @classmethod
    async def over(cls, sock: socket.socket) -> "Channel":
        """The end that is this socket."""
        return cls(*await asyncio.open_connection(sock=sock, limit=_LINE_BYTES))

    def send(self, message: msgspec.Struct) -> None:
        """Send; to an end that is gone, nothing happens."""
        self._writer.write(msgspec.json.encode(message) + b"\n")

    async def assignment(self) -> Assignment | None:
        """What a worker hears first."""
        line = await self._line()
        return _decode_assignment(line) if line else None

    async def order(self) -> NewConfig | Forget | Forgot | Stop | None:
        """What a worker hears afterwards."""
        line = await self._line()
        return _decode_order(line) if line else None

    async def told(self) -> Told | Forget | Forgot | None:
        """What the parent hears."""
        line = await self._line()
        return _decode_told(line) if line else None

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def _line(self) -> bytes:
        try:
            line = await self._reader.readline()
        except OSError:
            return b""
        return line if line.endswith(b"\n") else b""
