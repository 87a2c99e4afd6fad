"""Single-flight: equal calls under way share one call to the provider, streams included.

The call belongs to all who follow it: late followers get what has come so far and then the rest as it comes, the first
one leaving changes nothing for the others, and when the last one leaves the call is cancelled.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable


class Flight:
    """One call under way. The producer calls `begin` and `add`; each follower `join`s once and `leave`s once."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.pieces: list[bytes] = []
        self.done = False
        self.error: Exception | None = None
        self.is_stream = False
        self.level: str | None = None  # of the cache, where the answer came from there; None: the provider
        self.cost_usd: float | None = None  # what the call cost, once known: what each joined caller saved
        self.patience_s: float | None = None  # of the caller who started it; None: without end
        self.followers = 0
        self.abandoned = False  # its last follower left before the end
        self._waiters: set[asyncio.Future[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self, produce: Callable[["Flight"], Awaitable[None]]) -> None:
        """Run the producer in a task of its own, owned by the followers together."""
        self._task = asyncio.get_running_loop().create_task(self._run(produce))

    # --- producer ------------------------------------------------------------------------------------------------

    def begin(self, status: int, headers: list[tuple[bytes, bytes]], *, stream: bool) -> None:
        """The head of the answer is known."""
        self.status, self.headers, self.is_stream = status, headers, stream
        self._wake()

    def add(self, data: bytes) -> None:
        """A piece of the body has come."""
        self.pieces.append(data)
        self._wake()

    # --- followers -----------------------------------------------------------------------------------------------

    def join(self) -> None:
        """Count one more follower."""
        self.followers += 1

    def leave(self) -> None:
        """Count one less; the last one to leave a call under way cancels it."""
        self.followers -= 1
        if self.followers == 0:
            self.give_up()

    def give_up(self) -> None:
        """Cancel the call, if it is still under way; whoever follows gets ConnectionError."""
        if not self.done and self._task is not None:
            self.abandoned = True
            self._task.cancel()

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
        try:
            await produce(self)
        except asyncio.CancelledError:
            self._end(ConnectionError("the shared call was given up"))
            raise
        except Exception as error:  # noqa: BLE001 - whatever it was, it is the followers' to handle
            self._end(error)
        else:
            self._end(None)

    def _end(self, error: Exception | None) -> None:
        self.done, self.error = True, error
        self._wake()

    async def _wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


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

    def start(self, key: bytes, produce: Callable[[Flight], Awaitable[None]]) -> Flight:
        """Begin a call; it is found under `key` until it ends."""
        flight = self._flights[key] = Flight()

        async def run(flight: Flight) -> None:
            try:
                await produce(flight)
            finally:
                if self._flights.get(key) is flight:
                    del self._flights[key]

        flight.start(run)
        return flight
