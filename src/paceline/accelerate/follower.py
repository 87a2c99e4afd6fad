"""Follower: one caller's view of a shared call."""

from collections.abc import AsyncIterator

from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.replies import error_name
from paceline.accelerate.single_flight import Flight
from paceline.errors import UpstreamError


class Follower:
    """The body as an iterator, and the end counted once."""

    def __init__(self, flight: Flight, joined: CallRecord | None) -> None:
        """`joined`: the record of a caller that did not start the call; the one that did is told by its producer."""
        flight.join()
        self._flight = flight
        self._joined = joined
        self._pieces: AsyncIterator[bytes] | None = None
        self._over = False

    def __aiter__(self) -> "Follower":
        return self

    async def __anext__(self) -> bytes:
        pieces = self._pieces
        if pieces is None:
            pieces = self._pieces = self._flight.follow()
        try:
            return await pieces.__anext__()
        except StopAsyncIteration:
            self.end(None)
            raise
        except UpstreamError as error:
            self.end(error_name(error))
            raise

    async def aclose(self) -> None:
        """The caller is gone, or has everything."""
        self.end("client_closed")

    def withdraw(self) -> None:
        """Leave the call and tell nobody: the caller is served otherwise."""
        if not self._over:
            self._over = True
            self._flight.leave()

    def end(self, error: str | None) -> None:
        """Leave the call; a joined one tells its record."""
        if self._over:
            return
        self._over = True
        self._flight.leave()
        if self._joined is not None:
            flight = self._flight
            self._joined.joined(flight.status, flight.cost_usd, flight.level)
            self._joined.finish(error)
