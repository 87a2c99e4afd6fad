"""Leading: one call made for everybody who follows it, with a task only where there is something to wait for."""

import asyncio
from collections.abc import Awaitable

from paceline.accelerate.cache import Cache, Found, Lease, StoredReply
from paceline.accelerate.directives import Directives
from paceline.accelerate.follower import Follower
from paceline.accelerate.following import followed, whole_reply
from paceline.accelerate.headers import to_store
from paceline.accelerate.record import CallRecord
from paceline.accelerate.recorded import split_events
from paceline.accelerate.routing.answer import Answer
from paceline.accelerate.routing.begun import Begun, Underway
from paceline.accelerate.routing.replies import error_name
from paceline.accelerate.sending import PartOfBatch
from paceline.accelerate.single_flight import Flight
from paceline.errors import UpstreamBroken
from paceline.wire.client import ClientLimits
from paceline.wire.http import HttpRequest, Reply

_CLIENT_CLOSED = error_name(asyncio.CancelledError())
MOST_BYTES = ClientLimits().body_bytes  # of one answer: all of it is held for who comes later


class Leading:
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

    def take(self, begun: Begun, *, encoded: bool) -> None:
        """The same with a plain answer that is all here."""
        flight, reply = self.flight, begun.reply
        flight.status, flight.headers = reply.status, reply.headers
        flight.pieces.append(begun.take(encoded=encoded))
        self._keep()

    def give(self, found: Found) -> None:
        """The same with an answer that was kept by others."""
        stored: StoredReply = found.value
        flight = self.flight
        self.record.hit(stored.status, stored.cost_usd, found.level)
        flight.level, flight.cost_usd = found.level, stored.cost_usd
        flight.begin(stored.status, stored.headers, stream=stored.stream)
        for piece in stored.pieces:
            flight.add(piece)

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


class Led(Underway):
    """The reply to the caller who began the call, as long as that needs no task."""

    def __init__(self, leading: Leading, begun: Begun) -> None:
        super().__init__(begun)
        self._leading = leading
        self._follower = Follower(leading.flight, None)
        leading.flight.abandon = self._abandon
        leading.flight.on_news(self._told)

    def cancel(self) -> None:
        """The caller is gone; others may follow still."""
        super().cancel()
        self._follower.end(_CLIENT_CLOSED)

    def _abandon(self) -> None:
        self._begun.give_up()
        self._leading.failed(asyncio.CancelledError())

    def _whole(self, *, encoded: bool) -> None:
        leading = self._leading
        try:
            leading.take(self._begun, encoded=encoded)
        except Exception as error:  # noqa: BLE001 - it is the followers' to handle
            leading.failed(error)
            leading.flight.end(error)
        else:
            leading.flight.end()

    def _otherwise(self) -> None:
        """The answer has to be followed in a task."""
        leading, begun = self._leading, self._begun
        leading.flight.start(lambda _: leading.run(begun))

    def _told(self) -> None:
        """The call is over, or goes on in a task."""
        flight = self._leading.flight
        if not flight.done or flight.error is not None:
            self._ready()
            return
        self._follower.end(None)
        self._ready(whole_reply(flight, joined=False))

    async def _rest(self) -> Reply:
        return await followed(self._leading.flight, self._follower, self._leading.record, joined=False)


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
