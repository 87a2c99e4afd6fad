"""Sharing: one call for everybody who asks the same, kept for those who ask later."""

import asyncio
from collections.abc import Awaitable

from paceline.accelerate.cache import Cache, Found, Lease, StoredReply
from paceline.accelerate.directives import REFRESH, Directives
from paceline.accelerate.follower import Follower
from paceline.accelerate.headers import to_client, to_store
from paceline.accelerate.passing import FAILURES
from paceline.accelerate.record import CallRecord
from paceline.accelerate.recorded import split_events
from paceline.accelerate.replay import usd
from paceline.accelerate.routing.answer import Answer
from paceline.accelerate.routing.begun import Begun
from paceline.accelerate.routing.deadline import PATIENCE, patience_of
from paceline.accelerate.routing.replies import error_name, error_reply
from paceline.accelerate.sending import PartOfBatch, Sender
from paceline.accelerate.single_flight import Flight, SingleFlight
from paceline.errors import Overloaded, UpstreamBroken, UpstreamTimeout
from paceline.wire.client import ClientLimits
from paceline.wire.framing import EncodedHeaders
from paceline.wire.http import HttpRequest, Outcome, Reply
from paceline.wire.pending import Pending

_CLIENT_CLOSED = error_name(asyncio.CancelledError())
_REFRESHED = "refresh"
MOST_BYTES = ClientLimits().body_bytes  # of one answer: all of it is held for who comes later
_OUTCOME = (b"miss", b"join")  # of a caller who did not, and who did, join another's call


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
        leading = _Leading(self.cache, flight, request, key, said, record)
        if self.cache is None or not self.cache.asks_far:
            led = self._lead_now(leading)
            if led is not None:
                return led
        flight.start(lambda _: self._produce(leading))
        return _follow(flight, record, joined=False)

    def refresh(self, request: HttpRequest, key: bytes, said: Directives, record: CallRecord) -> None:
        """Make a kept answer anew, in the background and for nobody; one at a time."""
        if key in self._refreshing:
            return
        record.outcome = _REFRESHED
        flight = Flight(self._refreshing, key)
        flight.start(lambda _: self._produce(_Leading(self.cache, flight, request, key, said, record)))

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
            return await _follow(flight, record, joined=True)
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
        return await _followed(flight, follower, record, joined=True)

    def _lead_now(self, leading: "_Leading") -> Outcome | None:
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
        return _follow(leading.flight, leading.record, joined=False)

    async def _produce(self, leading: "_Leading") -> None:
        """The answer for everybody who follows: another process's, or the provider's, which is then kept."""
        try:
            if leading.lease is None and self.cache is not None:
                fresh = leading.record.outcome == _REFRESHED or leading.said.mode == REFRESH
                found, leading.lease = await self._elsewhere(self.cache, leading.key, fresh=fresh)
                if found is not None:
                    _give(leading.flight, found, leading.record)
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


class _Leading:
    """One call made for everybody who follows its flight."""

    __slots__ = ("_cache", "flight", "key", "lease", "record", "request", "said")

    def __init__(
        self,
        cache: Cache | None,
        flight: Flight,
        request: HttpRequest,
        key: bytes,
        said: Directives,
        record: CallRecord,
    ) -> None:
        self._cache = cache
        self.flight = flight
        self.request = request
        self.key = key
        self.said = said
        self.record = record
        self.lease: Lease | None = None

    async def run(self, sent: Awaitable[Answer | PartOfBatch]) -> None:
        """Give the answer to what was sent to the flight, as it comes, and keep it."""
        flight = self.flight
        try:
            answer = await sent
            try:
                flight.begin(answer.status, answer.headers, stream=answer.stream)
                size = 0
                async for piece in answer:
                    size += len(piece)
                    if size > MOST_BYTES:
                        msg = f"the provider sent more than {MOST_BYTES} bytes, which is what a shared answer may have"
                        raise UpstreamBroken(msg, target="")
                    flight.add(piece)
            finally:
                await answer.aclose()
            self._keep()
        except BaseException as error:
            self.failed(error)
            raise

    def take(self, answer: Answer) -> None:
        """The same with an answer that is all here."""
        flight = self.flight
        flight.status, flight.headers = answer.status, answer.headers
        flight.pieces.append(answer.whole_now())
        self._keep()

    def failed(self, error: BaseException) -> None:
        """It ended without an answer."""
        self.record.finish(error_name(error))
        if self.lease is not None:
            self.lease.release()

    def _keep(self) -> None:
        self.flight.cost_usd = self.record.cost_usd
        try:
            if self._cache is not None:
                _keep(self._cache, self.key, self.flight, self.said, self.record, self.lease)
        finally:
            if self.lease is not None:
                self.lease.release()


class Led(Pending[Reply]):
    """The reply to the caller who began the call, as long as that needs no task."""

    __slots__ = ("_begun", "_follower", "_leading")

    def __init__(self, leading: _Leading, begun: Begun) -> None:
        super().__init__()
        self._leading = leading
        self._begun = begun
        self._follower = Follower(leading.flight, None)
        leading.flight.abandon = self._abandon
        leading.flight.on_news(self._heard)
        begun.on_ready(self._answered)

    def cancel(self) -> None:
        """The caller is gone; others may follow still."""
        super().cancel()
        self._follower.end(_CLIENT_CLOSED)

    def _abandon(self) -> None:
        self._begun.cancel()
        self._leading.failed(asyncio.CancelledError())

    def _answered(self) -> None:
        """The provider's answer is whole, or has to be followed in a task."""
        leading, begun = self._leading, self._begun
        if begun.value is None or begun.value.stream:
            leading.flight.start(lambda _: leading.run(begun))
            return
        try:
            leading.take(begun.value)
        except Exception as error:  # noqa: BLE001 - it is the followers' to handle
            leading.failed(error)
            leading.flight.end(error)
        else:
            leading.flight.end()

    def _heard(self) -> None:
        """The call is over, or goes on in a task."""
        flight = self._leading.flight
        if not flight.done or flight.error is not None:
            self._ready()
            return
        self._follower.end(None)
        self._ready(_whole(flight, joined=False))

    async def _rest(self) -> Reply:
        return await _followed(self._leading.flight, self._follower, self._leading.record, joined=False)


async def _follow(flight: Flight, record: CallRecord, *, joined: bool) -> Reply:
    return await _followed(flight, Follower(flight, record if joined else None), record, joined=joined)


async def _followed(flight: Flight, follower: Follower, record: CallRecord, *, joined: bool) -> Reply:
    """The reply to one of those who follow a call: its answer as it comes, or whole, or what failed."""
    try:
        await flight.head()
        if not flight.is_stream:
            await flight.whole()
    except BaseException as error:
        follower.end(error_name(error))
        if not isinstance(error, FAILURES):
            raise
        assert record.asked is not None  # noqa: S101 - only model calls are shared
        return error_reply(error, _OUTCOME[joined], record.asked.dialect, record.taken)
    if flight.is_stream:
        return Reply(flight.status, _headers(flight, joined), follower)
    follower.end(None)
    return _whole(flight, joined=joined)


def _headers(flight: Flight, joined: bool) -> EncodedHeaders:
    if flight.level is None:
        return to_client(flight.headers, _OUTCOME[joined], length=False)
    headers = to_client(flight.headers, b"hit", length=False)
    return headers.plus(b"x-paceline-cache-level", flight.level.encode())


def _whole(flight: Flight, *, joined: bool) -> Reply:
    headers, pieces = _headers(flight, joined), flight.pieces
    if flight.cost_usd is not None:
        own = not joined and flight.level is None
        headers = headers.plus(b"x-paceline-cost-usd" if own else b"x-paceline-saved-usd", usd(flight.cost_usd))
    return Reply(flight.status, headers, pieces[0] if len(pieces) == 1 else b"".join(pieces))


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
    pieces = flight.pieces
    body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    stored = StoredReply(
        headers=to_store(flight.headers),
        pieces=split_events(body) if flight.is_stream else [body],
        stream=flight.is_stream,
        cost_usd=record.cost_usd,
        model=asked.info.model if asked is not None else None,
    )
    compute_s = (record.end_ns - record.start_ns) / 1e9
    cache.put(key, stored, ttl_s=said.ttl_s, tags=said.tags, compute_s=compute_s, lease=lease)
