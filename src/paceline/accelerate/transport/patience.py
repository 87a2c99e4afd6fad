"""Patience: how long one caller waits for each phase of its call, and what it is told of a failure.

Others may have joined the call, so silence is timed at each caller's own side (`Timed`). Only the time to connect is
the wire's: it learns it from a context variable, which passes whatever the policy puts between, tasks included.
"""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

from paceline.accelerate.record import CallRecord
from paceline.accelerate.transport.binding import Source
from paceline.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from paceline.wire.client import ClientReply, Connection, HttpClient, Timeouts
from paceline.wire.clients import IncomingReply
from paceline.wire.library_client import LibraryClient, LibraryReply

T = TypeVar("T")

FOREVER_S = 365 * 86_400.0  # of a limit the client was told not to have
SLACK_S = 1.0  # the wire's own limit of the time to connect comes first
_FAILED = ("upstream_timeout", "upstream_broken")


class Patience:
    """Of one caller with one call: what it waits for, and how the call failed."""

    __slots__ = ("_limit", "connect_s", "failed", "failure", "read_s")

    def __init__(self, connect_s: float, read_s: float) -> None:
        self.connect_s = connect_s
        self.read_s = read_s
        self._limit: asyncio.Timeout | None = None  # of the wait for the answer's head
        self.failure: UpstreamError | None = None  # the last one the wire met
        self.failed: str | None = None  # how the record of the call names its end

    async def wait(self, answer: Awaitable[T], target: str) -> T:
        """The answer, if it begins in time; else UpstreamTimeout. Connecting does not count, it has its own time."""
        self._limit = asyncio.timeout(self.read_s)
        try:
            async with self._limit:
                return await answer
        except TimeoutError as error:
            raise too_late(target, "first_byte", self.read_s) from error
        finally:
            self._limit = None

    def restart(self, limit_s: float) -> None:
        """Wait this long from now."""
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + limit_s)

    def raise_failure(self, target: str) -> None:
        """Raise what made the call fail, if the server did: the reply that stands for it is for HTTP callers."""
        if self.failed not in _FAILED:
            return
        if self.failure is not None:
            raise self.failure
        if self.failed == "upstream_timeout":
            raise UpstreamTimeout(f"{target} took too long", target=target, phase="first_byte", limit_s=0.0)
        raise UpstreamBroken(f"{target} broke off its answer", target=target)


PATIENCE: ContextVar[Patience] = ContextVar("paceline_patience")


def heard(record: CallRecord) -> None:
    """Note for the caller how its call ended."""
    patience = PATIENCE.get(None)
    if patience is not None:
        patience.failed = record.error


@functools.lru_cache(maxsize=256)
def _timeouts(connect_s: float) -> Timeouts:
    return Timeouts(connect_s=connect_s, first_byte_s=FOREVER_S, silence_s=FOREVER_S)


class CallersTime:
    """A client that connects within its caller's time, and leaves the rest of the timing to the caller."""

    @property
    def timeouts(self) -> Timeouts:
        """Of the call in whose context this is asked."""
        patience = PATIENCE.get(None)
        return _timeouts(FOREVER_S if patience is None else patience.connect_s)

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        """Nothing: they come with the call."""


class PatientClient(CallersTime, HttpClient):
    """Our own client for callers with patience."""

    async def head_of(self, reply: ClientReply) -> ClientReply:
        """As the client's; a failure is noted for the caller as well."""
        with noting():
            return await super().head_of(reply)

    async def _open(self) -> Connection:
        patience = PATIENCE.get(None)
        if patience is None:
            return await super()._open()
        patience.restart(patience.connect_s + SLACK_S)
        with noting():
            connection = await super()._open()
        patience.restart(patience.read_s)
        return connection


class PatientLibraryClient(CallersTime, LibraryClient):
    """The same over a transport of httpx. It does not say when it connects: that counts as waiting for the answer."""

    async def request(self, method: str, target: str, headers: Any = (), body: bytes = b"") -> LibraryReply:
        """As the client's; a failure is noted for the caller as well."""
        with noting():
            return await super().request(method, target, headers, body)


@contextlib.contextmanager
def noting() -> Iterator[None]:
    """Keep what the wire met for the caller."""
    try:
        yield
    except UpstreamError as error:
        patience = PATIENCE.get(None)
        if patience is not None:
            patience.failure = error
        raise


class Timed:
    """A body read by one caller, who waits at most `silence_s` for each piece."""

    __slots__ = ("_silence_s", "_source", "_target")

    def __init__(self, source: Source, silence_s: float, target: str) -> None:
        self._source = source
        self._silence_s = silence_s
        self._target = target

    def __aiter__(self) -> "Timed":
        return self

    async def __anext__(self) -> bytes:
        """The next piece. UpstreamTimeout when none comes in time, or what the source raises."""
        try:
            async with asyncio.timeout(self._silence_s):
                return await self._source.__anext__()
        except TimeoutError as error:
            raise too_late(self._target, "silence", self._silence_s) from error

    async def aclose(self) -> None:
        """Give up the rest."""
        await self._source.aclose()


class Direct:
    """A body straight from the wire."""

    __slots__ = ("_reply",)

    def __init__(self, reply: IncomingReply) -> None:
        self._reply = reply

    def __aiter__(self) -> "Direct":
        return self

    async def __anext__(self) -> bytes:
        """The next piece."""
        return await self._reply.__anext__()

    async def aclose(self) -> None:
        """Give up what has not arrived."""
        self._reply.close()


def too_late(target: str, phase: str, limit_s: float) -> UpstreamTimeout:
    """The failure of a caller whose time is up."""
    what = "did not answer" if phase == "first_byte" else "fell silent in its answer"
    return UpstreamTimeout(f"{target} {what} for {limit_s:g} s", target=target, phase=phase, limit_s=limit_s)
