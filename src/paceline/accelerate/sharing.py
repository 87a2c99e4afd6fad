"""Sharing: one call for everybody who asks the same, kept for those who ask later."""

import asyncio
from collections.abc import Awaitable

from paceline.accelerate.cache import Cache, Found, Lease
from paceline.accelerate.directives import REFRESH, Directives
from paceline.accelerate.follower import Follower
from paceline.accelerate.following import follow, followed
from paceline.accelerate.leading import Leading, Led
from paceline.accelerate.passing import FAILURES
from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.begun import Begun
from paceline.accelerate.routing.deadline import PATIENCE, patience_of
from paceline.accelerate.routing.replies import error_name, error_reply
from paceline.accelerate.sending import Sender
from paceline.accelerate.single_flight import Flight, SingleFlight
from paceline.errors import Overloaded, UpstreamTimeout
from paceline.wire.http import HttpRequest, Outcome, Reply

_REFRESHED = "refresh"


class SharedCalls:
    """Calls that others may join, whose answers the cache keeps.

    Args:
        flights: None: nobody joins a call under way.
        cache: None: nothing is kept.
    """

    def __init__(self, sender: Sender, flights: SingleFlight | None, cache: Cache | None) -> None:
        self._sender = sender
        self._refreshing: dict[bytes, Flight] = {}
        self.flights = flights
        self.cache = cache
        self._asks_far = cache is not None and cache.asks_far

    def __len__(self) -> int:
        return len(self._refreshing) + (len(self.flights) if self.flights is not None else 0)

    def join(self, request: HttpRequest, key: bytes, said: Directives, record: CallRecord) -> Awaitable[Reply] | None:
        """The reply of an equal call under way; None: there is none to join."""
        flight = self.flights.get(key) if self.flights is not None else None
        return None if flight is None else self._join(flight, request, key, said, record)

    def lead(self, request: HttpRequest, key: bytes, said: Directives, record: CallRecord) -> Outcome:
        """Make the call that others may join. It runs by itself and tells `record` itself."""
        record.outcome = "miss"
        flight = self.flights.begin(key) if self.flights is not None else Flight()
        flight.asked_by = request.headers
        leading = Leading(self.cache, flight, request, key, said, record)
        if not self._asks_far:
            led = self._lead_now(leading)
            if led is not None:
                return led
        flight.start(lambda _: self._produce(leading))
        return follow(flight, record, joined=False)

    def refresh(self, request: HttpRequest, key: bytes, said: Directives, record: CallRecord) -> None:
        """Make a kept answer anew, in the background and for nobody; one at a time."""
        if key in self._refreshing:
            return
        record.outcome = _REFRESHED
        flight = Flight(self._refreshing, key)
        flight.start(lambda _: self._produce(Leading(self.cache, flight, request, key, said, record)))

    async def close(self) -> None:
        """Give up what is made for nobody."""
        for flight in list(self._refreshing.values()):
            flight.give_up()
        await asyncio.sleep(0)

    async def _join(
        self, flight: Flight, request: HttpRequest, key: bytes, said: Directives, record: CallRecord
    ) -> Reply:
        """Follow a call under way. Its first caller's deadline is not this one's: see `_outlasts`."""
        limit_s = patience_of(request.headers).limit_s
        given_s = patience_of(flight.asked_by).limit_s
        if limit_s is None and given_s is None:
            return await follow(flight, record, joined=True)
        began_s = asyncio.get_running_loop().time()
        follower = Follower(flight, record)
        try:
            async with asyncio.timeout(limit_s):
                await flight.head()
        except TimeoutError:
            error = UpstreamTimeout(
                f"no answer began in {limit_s:g} s", target="", phase="total", limit_s=limit_s or 0.0
            )
            follower.end(error_name(error))
            assert record.asked is not None  # noqa: S101 - only model calls are shared
            return error_reply(error, b"join", record.asked.dialect)
        except FAILURES as error:
            left_s = None if limit_s is None else limit_s - (asyncio.get_running_loop().time() - began_s)
            if _outlasts(left_s, given_s, error):
                follower.withdraw()
                again = _with_patience(request, left_s)
                outcome = self.join(again, key, said, record) or self.lead(again, key, said, record)
                return outcome if isinstance(outcome, Reply) else await outcome
        except BaseException as error:
            follower.end(error_name(error))
            raise
        return await followed(flight, follower, record, joined=True)

    def _lead_now(self, leading: Leading) -> Outcome | None:
        """Lead without a task as long as that goes well; None where there is something to wait for first."""
        cache = self.cache
        if cache is not None and self.flights is not None:
            leading.lease = cache.lease_here(leading.key)
            if leading.lease is None:
                return None
        try:
            sent = self._sender.send(leading.request, leading.record)
            if isinstance(sent, Begun):
                return Led(leading, sent)
        except BaseException as error:
            leading.failed(error)
            leading.flight.end(error if isinstance(error, Exception) else None)
            raise
        leading.flight.start(lambda _: leading.run(sent))
        return follow(leading.flight, leading.record, joined=False)

    async def _produce(self, leading: Leading) -> None:
        """The answer for everybody who follows: another process's, or the provider's, which is then kept."""
        try:
            if leading.lease is None and self.cache is not None:
                fresh = leading.record.outcome == _REFRESHED or leading.said.mode == REFRESH
                found, leading.lease = await self._elsewhere(self.cache, leading.key, fresh=fresh)
                if found is not None:
                    leading.give(found)
                    return
            sent = self._sender.send(leading.request, leading.record)
        except BaseException as error:
            leading.failed(error)
            raise
        await leading.run(sent)

    async def _elsewhere(self, cache: Cache, key: bytes, *, fresh: bool) -> tuple[Found | None, Lease | None]:
        """What slower levels or another process have for this key; else, if it is to be had, the right to ask."""
        found = None if fresh else await cache.get(key)
        if found is not None or self.flights is None:
            return found, None
        lease = await cache.lease(key)
        if lease is None and not fresh:
            found = await cache.wait_for(key, asyncio.get_running_loop().time() + cache.policy.wait_s)
        return found, lease


def _outlasts(left_s: float | None, given_s: float | None, error: Exception) -> bool:
    """True when a call failed for want of time that its first caller did not have, and this one has.

    Asked again is only where at least as long is left as that call was given: less would most likely be paid in vain.
    """
    hurried = isinstance(error, Overloaded) or (isinstance(error, UpstreamTimeout) and error.phase == "total")
    return hurried and given_s is not None and (left_s is None or left_s >= given_s)


def _with_patience(request: HttpRequest, left_s: float | None) -> HttpRequest:
    """The request of a caller who has waited already."""
    if left_s is None:
        return request
    said = (PATIENCE, b"%.3f" % left_s)
    return HttpRequest(request.method, request.target, [*request.headers, said], request.body)
