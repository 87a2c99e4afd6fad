"""Sharing: one call for everybody who asks the same, kept for those who ask later."""

import asyncio
from collections.abc import Awaitable

from paceline.accelerate.cache import Cache, Found, Lease, StoredReply
from paceline.accelerate.directives import REFRESH, Directives
from paceline.accelerate.follower import Follower
from paceline.accelerate.headers import to_client, to_store
from paceline.accelerate.record import CallRecord
from paceline.accelerate.recorded import split_events
from paceline.accelerate.replay import usd
from paceline.accelerate.routing.deadline import PATIENCE, patience_of
from paceline.accelerate.routing.replies import error_name, error_reply
from paceline.accelerate.sending import Sender
from paceline.accelerate.single_flight import Flight, SingleFlight
from paceline.errors import Overloaded, UpstreamBroken, UpstreamError, UpstreamTimeout
from paceline.wire.client import ClientLimits
from paceline.wire.http import HttpRequest, Reply

FAILURES = (UpstreamError, Overloaded)
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
        self.most_bytes = ClientLimits().body_bytes  # of one answer: all of it is held for who comes later

    def __len__(self) -> int:
        return len(self._refreshing) + (len(self.flights) if self.flights is not None else 0)

    def join(self, request: HttpRequest, key: bytes, said: Directives, record: CallRecord) -> Awaitable[Reply] | None:
        """The reply of an equal call under way; None: there is none to join."""
        flight = self.flights.get(key) if self.flights is not None else None
        return None if flight is None else self._join(flight, request, key, said, record)

    def lead(self, request: HttpRequest, key: bytes, said: Directives, record: CallRecord) -> Awaitable[Reply]:
        """Make the call that others may join. It runs in a task of its own and tells `record` itself."""
        record.outcome = "miss"

        async def produce(flight: Flight) -> None:
            await self._produce(flight, request, key, said, record)

        if self.flights is not None:
            flight = self.flights.start(key, produce)
        else:
            flight = Flight()
            flight.start(produce)
        flight.patience_s = patience_of(request.headers).limit_s
        return self._follow(flight, record, joined=False)

    def refresh(self, request: HttpRequest, key: bytes, said: Directives, record: CallRecord) -> None:
        """Make a kept answer anew, in the background and for nobody; one at a time."""
        if key in self._refreshing:
            return
        record.outcome = _REFRESHED

        async def produce(flight: Flight) -> None:
            try:
                await self._produce(flight, request, key, said, record)
            finally:
                del self._refreshing[key]

        flight = self._refreshing[key] = Flight()
        flight.start(produce)

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
        if limit_s is None and flight.patience_s is None:
            return await self._follow(flight, record, joined=True)
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
            if _outlasts(left_s, flight, error):
                follower.withdraw()
                again = _with_patience(request, left_s)
                return await (self.join(again, key, said, record) or self.lead(again, key, said, record))
        except BaseException as error:
            follower.end(error_name(error))
            raise
        return await self._follow(flight, record, joined=True, follower=follower)

    async def _follow(
        self, flight: Flight, record: CallRecord, *, joined: bool, follower: Follower | None = None
    ) -> Reply:
        outcome = b"join" if joined else b"miss"
        follower = follower or Follower(flight, record if joined else None)
        try:
            await flight.head()
            if not flight.is_stream:
                await flight.whole()
        except BaseException as error:
            follower.end(error_name(error))
            if not isinstance(error, FAILURES):
                raise
            assert record.asked is not None  # noqa: S101 - only model calls are shared
            return error_reply(error, outcome, record.asked.dialect, record.taken)
        headers = to_client(flight.headers, outcome if flight.level is None else b"hit", length=False)
        if flight.level is not None:
            headers.append((b"x-paceline-cache-level", flight.level.encode()))
        if flight.is_stream:
            return Reply(flight.status, headers, follower)
        follower.end(None)
        if flight.cost_usd is not None:
            own = not joined and flight.level is None
            headers.append((b"x-paceline-cost-usd" if own else b"x-paceline-saved-usd", usd(flight.cost_usd)))
        return Reply(flight.status, headers, b"".join(flight.pieces))

    async def _produce(
        self, flight: Flight, request: HttpRequest, key: bytes, said: Directives, record: CallRecord
    ) -> None:
        """The answer for everybody who follows: another process's, or the provider's, which is then kept."""
        lease: Lease | None = None
        try:
            if self.cache is not None:
                fresh = record.outcome == _REFRESHED or said.mode == REFRESH
                found, lease = await self._elsewhere(self.cache, key, fresh=fresh)
                if found is not None:
                    _give(flight, found, record)
                    return
            await self._ask(flight, request, record)
            if self.cache is not None:
                _keep(self.cache, key, flight, said, record, lease)
        except BaseException as error:
            record.finish(error_name(error))
            raise
        finally:
            if lease is not None:
                lease.release()

    async def _elsewhere(self, cache: Cache, key: bytes, *, fresh: bool) -> tuple[Found | None, Lease | None]:
        """What slower levels or another process have for this key; else, if it is to be had, the right to ask."""
        found = None if fresh else await cache.get(key)
        if found is not None or self.flights is None:
            return found, None
        lease = await cache.lease(key)
        if lease is None and not fresh:
            found = await cache.wait_for(key, asyncio.get_running_loop().time() + cache.policy.wait_s)
        return found, lease

    async def _ask(self, flight: Flight, request: HttpRequest, record: CallRecord) -> None:
        answer = await self._sender.send(request, record)
        try:
            flight.begin(answer.status, answer.headers, stream=answer.stream)
            size = 0
            async for piece in answer:
                size += len(piece)
                if size > self.most_bytes:
                    msg = f"the provider sent more than {self.most_bytes} bytes, which is what a shared answer may have"
                    raise UpstreamBroken(msg, target="")
                flight.add(piece)
        finally:
            await answer.aclose()
        flight.cost_usd = record.cost_usd


def _outlasts(left_s: float | None, flight: Flight, error: Exception) -> bool:
    """True when a call failed for want of time that its first caller did not have, and this one has.

    Asked again is only where at least as long is left as that call was given: less would most likely be paid in vain.
    """
    hurried = isinstance(error, Overloaded) or (isinstance(error, UpstreamTimeout) and error.phase == "total")
    given_s = flight.patience_s
    return hurried and given_s is not None and (left_s is None or left_s >= given_s)


def _with_patience(request: HttpRequest, left_s: float | None) -> HttpRequest:
    """The request of a caller who has waited already."""
    if left_s is None:
        return request
    said = (PATIENCE, b"%.3f" % left_s)
    return HttpRequest(request.method, request.target, [*request.headers, said], request.body)


def _give(flight: Flight, found: Found, record: CallRecord) -> None:
    """A kept answer to everybody who follows."""
    stored: StoredReply = found.value
    record.shared("hit", stored.status, stored.cost_usd, found.level)
    record.finish()
    flight.level, flight.cost_usd = found.level, stored.cost_usd
    flight.begin(stored.status, stored.headers, stream=stored.stream)
    for piece in stored.pieces:
        flight.add(piece)


def _keep(cache: Cache, key: bytes, flight: Flight, said: Directives, record: CallRecord, lease: Lease | None) -> None:
    """Store the answer if it is whole: never an error, a refusal, or a stream without its final event.

    Nor what a fallback said: the key names the model that was asked for.
    """
    info, asked, taken = record.info, record.asked, record.taken
    if flight.status != 200 or not info.complete or info.refused or (taken is not None and taken.fallback is not None):
        return
    body = b"".join(flight.pieces)
    stored = StoredReply(
        headers=to_store(flight.headers),
        pieces=split_events(body) if flight.is_stream else [body],
        stream=flight.is_stream,
        cost_usd=record.cost_usd,
        model=asked.info.model if asked is not None else None,
    )
    compute_s = (record.end_ns - record.start_ns) / 1e9
    cache.put(key, stored, ttl_s=said.ttl_s, tags=said.tags, compute_s=compute_s, lease=lease)
