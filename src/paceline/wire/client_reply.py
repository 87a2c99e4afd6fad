"""An answer as the HTTP/1.1 client's caller takes it: piece by piece, handed on as it comes, or whole."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from paceline.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from paceline.wire.connection import Connection
from paceline.wire.http import Take

_HIGH_WATER = 256 * 1024  # bytes waiting for a slow consumer before the connection is no longer read


class ClientLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of one client."""

    connections: int = 8192  # above it, requests wait for a free one in order
    idle_s: float = 50.0  # a connection unused this long is closed
    body_bytes: int = 64 * 1024 * 1024  # of an answer that is read whole


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds a phase of one exchange may take."""

    connect_s: float = 10.0  # TLS included
    first_byte_s: float = 300.0  # from the request sent to the head of the answer
    silence_s: float = 120.0  # between two pieces of the body


class Owner(Protocol):
    """The client a reply came through."""

    base_url: str
    limits: ClientLimits
    timeouts: Timeouts

    async def head_of(self, reply: "ClientReply") -> "ClientReply":
        """The reply, once its head is here."""

    def give_back(self, reply: "ClientReply", connection: Connection, *, reusable: bool) -> None:
        """Take the connection back after its exchange."""


class ClientReply:
    """An answer whose head has arrived: iterate over the pieces of its body as they come, or `read` it whole.

    Take it to the end or `close` it: until then it holds its connection.
    """

    status = 0
    headers: list[tuple[bytes, bytes]]
    done = False  # the whole answer is here, or it failed
    error: UpstreamError | None = None  # why it ended early
    # Called by the connection when the head arrives, when so much waits that no more is read, and when the answer is
    # over; once where that is the same moment. It must not raise. None: nobody listens.
    listener: Callable[[], None] | None = None
    _bytes = 0  # waiting in `_pieces`
    _expired: tuple[str, float] | None = None
    _paused = False
    _waiter: "asyncio.Future[None] | None" = None
    _take: Take | None = None  # who is given pieces as they arrive
    _held: Awaitable[None] | None = None  # what it asked us to wait for
    _failure: Exception | None = None  # what it raised

    def __init__(
        self,
        client: Owner,
        connection: Connection,
        loop: asyncio.AbstractEventLoop,
        request: bytes | None = None,
    ) -> None:
        """`request`: what was sent, where it may be sent once more because the connection was a kept one."""
        self._client = client
        self._connection = connection
        self._loop = loop
        self._request = request
        self._pieces: list[bytes] = []  # arrived, not taken
        self.seen_s = loop.time()  # when the server was last heard of

    def header(self, name: bytes) -> bytes | None:
        """First value of a header (lower-case name)."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def __aiter__(self) -> "ClientReply":
        return self

    async def __anext__(self) -> bytes:
        """The next piece of the body, framing removed. UpstreamBroken or UpstreamTimeout when it ends early."""
        while not self._pieces:
            if self.done:
                raise self.error or StopAsyncIteration
            await self.news()
        return self._next()

    def _next(self) -> bytes:
        """Everything that waits."""
        data = self.read_now()
        if self._paused:
            self._paused = False
            self.seen_s = self._loop.time()  # it was us who did not listen
            self._connection.resume()
        return data

    async def forward(self, take: Take) -> None:
        """Give every piece to `take` as it arrives, without a turn of the task in between; returns at the end.

        `take` answers with what must be awaited before it wants the next piece, or None. Errors are those of
        iteration, and whatever `take` raises.
        """
        while True:
            while self._pieces:
                held = take(self._next())
                if held is not None:
                    await held
            if self.done:
                if self.error is not None:
                    raise self._failure or self.error
                return
            self._take = take
            try:
                await self.news()
            finally:
                self._take = None
            held, self._held = self._held, None
            if held is not None:
                await held

    async def read(self) -> bytes:
        """The rest of the body. UpstreamBroken when it is larger than the client's limit, or as in iteration."""
        limit_bytes = self._client.limits.body_bytes
        if self.done and self.error is None and self._bytes <= limit_bytes:  # the usual case
            return self.read_now()
        return b"".join(await self._read_on(limit_bytes))

    def read_now(self) -> bytes:
        """What waits: the rest of the body, where the answer is all here (`done`, without an `error`)."""
        pieces = self._pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._bytes = 0
        return body

    async def _read_on(self, limit_bytes: int) -> list[bytes]:
        pieces, size = [], 0
        try:
            async for data in self:
                pieces.append(data)
                size += len(data)
                if size > limit_bytes:
                    msg = f"{self._client.base_url} sent more than {limit_bytes} bytes"
                    raise UpstreamBroken(msg, target=self._client.base_url)
        finally:
            self.close()
        return pieces

    def close(self) -> None:
        """Give up what has not arrived. Nothing happens when the answer is complete."""
        if not self.done:
            self._connection.abort()

    async def arrived(self) -> "ClientReply":
        """To await after `begin`: the reply whose head is here, see `Owner.head_of`."""
        return await self._client.head_of(self)

    @property
    def to_repeat(self) -> bytes | None:
        """The request, if it has to be sent again: the server closed the kept connection before it answered a byte."""
        broken = self.done and not self.status and isinstance(self.error, UpstreamBroken)
        return self._request if broken and not self._connection.answered else None

    def news(self) -> "asyncio.Future[None]":
        """To await: something has arrived since, or it ended. One waits at a time."""
        waiter = self._waiter = self._loop.create_future()
        return waiter

    # --- Exchange ------------------------------------------------------------------------------------------------

    def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """The head arrived."""
        self.status, self.headers = status, headers
        self.seen_s = self._loop.time()
        if self.listener is not None:
            self.listener()
        if self._waiter is not None:
            self._wake(self._waiter)

    def on_body(self, data: bytes) -> None:
        """A piece of the body arrived."""
        self.seen_s = self._loop.time()
        if self._take is not None:
            self._hand_on(data, self._take)
            return
        self._pieces.append(data)
        self._bytes += len(data)
        if self._bytes > _HIGH_WATER and not self._paused:
            self._paused = True
            self._connection.pause()
            if self.listener is not None:
                self.listener()
        if self._waiter is not None:
            self._wake(self._waiter)

    def _hand_on(self, data: bytes, take: Take) -> None:
        try:
            self._held = take(data)
        except Exception as error:  # noqa: BLE001 - raised again in `forward`
            self._take, self._failure = None, error
            self._connection.abort()
            return
        if self._held is not None:  # what comes meanwhile waits here
            self._take = None
            if self._waiter is not None:
                self._wake(self._waiter)

    def on_whole(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes, reusable: bool) -> None:
        """All of it arrived at once."""
        self.status, self.headers = status, headers
        if body:
            self._pieces.append(body)
            self._bytes = len(body)
        self.done = True
        self.seen_s = self._loop.time()
        self._client.give_back(self, self._connection, reusable=reusable)
        if self.listener is not None:
            self.listener()
        if self._waiter is not None:
            self._wake(self._waiter)

    def on_done(self, error: Exception | None, reusable: bool) -> None:
        """The answer is complete or failed; the connection goes back."""
        self.done = True
        if error is not None:
            self.error = self._translate(error)
        if self._paused:
            self._connection.resume()
        self._client.give_back(self, self._connection, reusable=reusable)
        if self.listener is not None:
            self.listener()
        if self._waiter is not None:
            self._wake(self._waiter)

    def _wake(self, waiter: "asyncio.Future[None]") -> None:
        self._waiter = None
        if not waiter.done():  # whoever waited may have been cancelled
            waiter.set_result(None)

    def _translate(self, error: Exception) -> UpstreamError:
        target = self._client.base_url
        if self._expired is None:
            return UpstreamBroken(f"{target}: {error}", target=target)
        phase, limit_s = self._expired
        what = "did not begin to answer" if phase == "first_byte" else "fell silent in its answer"
        return UpstreamTimeout(f"{target} {what} for {limit_s:g} s", target=target, phase=phase, limit_s=limit_s)

    def check_time(self, now_s: float) -> float:
        """Give up when the server has been silent too long. Otherwise: when to look again, on the loop's clock."""
        timeouts = self._client.timeouts
        phase, limit_s = ("silence", timeouts.silence_s) if self.status else ("first_byte", timeouts.first_byte_s)
        if self._paused:  # it is us who do not listen
            return now_s + limit_s
        if self.seen_s + limit_s <= now_s:
            self._expired = (phase, limit_s)
            self._connection.abort()
        return self.seen_s + limit_s
