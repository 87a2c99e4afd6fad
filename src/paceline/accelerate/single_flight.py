"""Single-flight: equal calls under way share one call to the provider, streams included.

The call belongs to all who follow it: late followers get what has come so far and then the rest as it comes, the first
one leaving changes nothing for the others, and when the last one leaves the call is cancelled.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

_GIVEN_UP = "the shared call was given up"


class Flight:
    """One call under way. The producer calls `begin`, `add` and `end`; each follower `join`s once and `leave`s once."""

    __slots__ = (
        "_key",
        "_runs",
        "_task",
        "_told",
        "_under_way",
        "_waiters",
        "abandon",
        "abandoned",
        "asked_by",
        "cost_usd",
        "done",
        "error",
        "followers",
        "headers",
        "is_stream",
        "level",
        "pieces",
        "status",
    )

    def __init__(self, under_way: "dict[bytes, Flight] | None" = None, key: bytes = b"") -> None:
        """`under_way`: where it is found under `key` until it ends."""
        self.status = 0
        self.headers: Sequence[tuple[bytes, bytes]] = ()
        self.pieces: list[bytes] = []
        self.done = False
        self.error: Exception | None = None
        self.is_stream = False
        self.level: str | None = None  # of the cache, where the answer came from there; None: the provider
        self.cost_usd: float | None = None  # what the call cost, once known: what each joined caller saved
        self.asked_by: Sequence[tuple[bytes, bytes]] = ()  # headers of who began it, its patience among them
        self.followers = 0
        self.abandoned = False  # its last follower left before the end
        self.abandon: Callable[[], None] | None = None  # gives up what it waits for, while it has no task
        self._waiters: set[asyncio.Future[None]] | None = None
        self._told: Callable[[], None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._runs = False  # its task has begun
        self._under_way = under_way
        self._key = key
        if under_way is not None:
            under_way[key] = self

    def start(self, produce: Callable[["Flight"], Awaitable[None]]) -> None:
        """Run the producer in a task of its own, owned by the followers together."""
        self.abandon = None
        self._task = asyncio.get_running_loop().create_task(self._run(produce))
        self._tell()

    # --- producer ------------------------------------------------------------------------------------------------

    def begin(self, status: int, headers: Sequence[tuple[bytes, bytes]], *, stream: bool) -> None:
        """The head of the answer is known."""
        self.status, self.headers, self.is_stream = status, headers, stream
        self._wake()

    def add(self, data: bytes) -> None:
        """A piece of the body has come."""
        self.pieces.append(data)
        self._wake()

    def end(self, error: Exception | None = None) -> None:
        """The answer is whole, or broke off."""
        self.done, self.error = True, error
        self.abandon = None  # it knows the flight: a ring that only the garbage collector would find
        if self._under_way is not None and self._under_way.get(self._key) is self:
            del self._under_way[self._key]
        if self._waiters:
            self._wake()
        self._tell()

    # --- followers -----------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Count one more follower."""
        self.followers += 1

    def leave(self) -> None:
        """Count one less; the last one to leave a call under way cancels it."""
        self.followers -= 1
        if self.followers == 0 and not self.done:
            self.give_up()

    def give_up(self) -> None:
        """Cancel the call, if it is still under way; whoever follows gets ConnectionError."""
        if self.done:
            return
        self.abandoned = True
        if self._task is not None:
            if self._runs:
                self._task.cancel()
            else:  # a coroutine cancelled before its first step could not give back what it was handed
                self._task.get_loop().call_soon(self._task.cancel)
        elif self.abandon is not None:
            self.abandon()
            self.end(ConnectionError(_GIVEN_UP))

    def on_news(self, tell: Callable[[], None]) -> None:
        """Call `tell` once: when it is over, or goes on in a task. For the one caller who began it."""
        self._told = tell

    async def head(self) -> None:
        """Wait until the head is known. Raises the producer's error if it failed before."""
        while not self.status:
            if self.done:
                raise self.error or ConnectionError("the shared call ended without an answer")
            await self._wait()

    async def whole(self) -> None:
        """Wait until the answer is complete. Raises the producer's error if it failed."""
        while not self.done:
            await self._wait()
        if self.error is not None:
            raise self.error

    async def follow(self) -> AsyncIterator[bytes]:
        """All pieces from the first, then the rest as they come. Raises the producer's error where it broke off."""
        position = 0
        while True:
            while position < len(self.pieces):
                position += 1
                yield self.pieces[position - 1]
            if self.done:
                break
            await self._wait()
        if self.error is not None:
            raise self.error

    async def _run(self, produce: Callable[["Flight"], Awaitable[None]]) -> None:
        self._runs = True
        try:
            await produce(self)
        except asyncio.CancelledError:
            self.end(ConnectionError(_GIVEN_UP))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, it is the followers' to handle
            self.end(error)
        else:
            self.end()

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        if self._waiters is None:
            self._waiters = set()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters or ():
            if not waiter.done():
                waiter.set_result(None)

    def _tell(self) -> None:
        told = self._told
        if told is not None:
            self._told = None
            told()


class SingleFlight:
    """The calls under way, by key."""

    def __init__(self) -> None:
        self._flights: dict[bytes, Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def get(self, key: bytes) -> Flight | None:
        """The call under way with this key that can still be joined."""
        flight = self._flights.get(key)
        return flight if flight is not None and not flight.done and not flight.abandoned else None

    def begin(self, key: bytes) -> Flight:
        """A call that is found under `key` until it ends; `start` it, or produce its answer."""
        return Flight(self._flights, key)
