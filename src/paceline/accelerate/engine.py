"""The engine: one model call answered by the policy: hit, join, or pass on. A hit needs no task.

The gateway serves it over HTTP, the transports call it inside the application: the same code, the same policies.
"""

import asyncio
from collections.abc import Awaitable

from paceline.accelerate.asked import AskedReader
from paceline.accelerate.cache import MemoryCache, StoredReply
from paceline.accelerate.caller import Caller
from paceline.accelerate.directives import BYPASS, REFRESH, read_directives
from paceline.accelerate.headers import is_event_stream, to_client, to_store
from paceline.accelerate.policy import Policy
from paceline.accelerate.record import CallRecord, Listener
from paceline.accelerate.single_flight import Flight, SingleFlight
from paceline.accelerate.upstream import Answer, Upstream, error_name, error_reply
from paceline.clock import Clock, RunClock
from paceline.errors import Overloaded, UpstreamError
from paceline.wire.client import HttpClient
from paceline.wire.http import HttpRequest, Reply

_FAILURES = (UpstreamError, Overloaded)


def _nobody(record: CallRecord) -> None:
    """Hears of a call and does nothing."""


class Engine:
    """One provider behind one policy. `handle` answers a request; `listener` hears of every finished call, once."""

    def __init__(
        self,
        client: HttpClient,
        policy: Policy | None = None,
        *,
        listener: Listener | None = None,
        clock: Clock | None = None,
        speed: float = 1.0,
    ) -> None:
        """`speed`: a simulated provider runs that many times faster; the policy's seconds are at its real pace."""
        policy = (policy or Policy()).at_speed(speed)
        self.upstream = Upstream(client, policy, speed=speed)
        self.cache = MemoryCache(policy.cache.max_bytes, policy.cache.ttl_s) if policy.cache.enabled else None
        self.flights = SingleFlight() if policy.single_flight else None
        self._reader = AskedReader(policy)
        self._listener = listener or _nobody
        self._clock = clock or RunClock()

    def handle(self, request: HttpRequest, caller: Caller | None = None) -> Reply | Awaitable[Reply]:
        """Answer one request; `caller` where it is known who asks."""
        said = request.notes.get(self)
        if said is None:
            tenant = caller.tenant if caller is not None else None
            said = request.notes[self] = read_directives(request.method, request.target, request.headers, tenant)
        record = CallRecord(self._listener, self._clock, request.method, said.path, said.kind, said.traceparent)
        record.caller = caller
        if said.dialect is None:
            return self._pass(request, record)
        record.step = said.step
        asked = record.asked = self._reader.read(said, request.target, request.body)
        if asked.key is None or said.mode == BYPASS:
            return self._pass(request, record)
        if said.mode == REFRESH:
            return self._lead(request, asked.key, record)
        stored = self.cache.get(asked.key) if self.cache is not None else None
        if stored is not None:
            return _replay(stored, record)
        flight = self.flights.get(asked.key) if self.flights is not None else None
        if flight is not None:
            return self._follow(flight, record, b"join")
        return self._lead(request, asked.key, record)

    def state(self) -> dict[str, int]:
        """What is held now: calls, connections, kept answers."""
        limiter, client = self.upstream.limiter, self.upstream.client
        return {
            "in_flight": limiter.in_flight,
            "waiting": limiter.waiting,
            "flights": len(self.flights) if self.flights is not None else 0,
            "upstream_busy": client.busy,
            "upstream_idle": client.idle,
            "cache_entries": len(self.cache) if self.cache is not None else 0,
            "cache_bytes": self.cache.used_bytes if self.cache is not None else 0,
        }

    async def _pass(self, request: HttpRequest, record: CallRecord) -> Reply:
        """Send it on and the answer back, sharing nothing."""
        try:
            answer = await self.upstream.send(request, record)
            if answer.stream or not answer.is_small:
                return Reply(answer.status, to_client(answer.headers, b"bypass", length=True), answer)
            body = await answer.whole()
        except _FAILURES as error:
            reply = error_reply(error, b"bypass")
            record.status = record.status or reply.status
            record.finish(error_name(error))
            return reply
        except asyncio.CancelledError as error:
            record.finish(error_name(error))
            raise
        return Reply(answer.status, to_client(answer.headers, b"bypass", length=request.method == "HEAD"), body)

    def _lead(self, request: HttpRequest, key: bytes, record: CallRecord) -> Awaitable[Reply]:
        """Make the call that others may join. It runs in a task of its own and writes its own span."""
        record.outcome = "miss"

        async def produce(flight: Flight) -> None:
            try:
                answer = await self.upstream.send(request, record)
            except BaseException as error:
                record.finish(error_name(error))
                raise
            try:
                flight.begin(answer.status, answer.headers)
                async for piece in answer:
                    flight.add(piece)
            finally:
                await answer.aclose()
            flight.cost_usd = record.cost_usd
            self._store(key, flight, answer, record)

        if self.flights is not None:
            return self._follow(self.flights.start(key, produce), None, b"miss")
        flight = Flight()
        flight.start(produce)
        return self._follow(flight, None, b"miss")

    async def _follow(self, flight: Flight, joined: CallRecord | None, outcome: bytes) -> Reply:
        """Answer from a call under way; `joined` is the record of a caller that did not start it."""
        flight.join()
        follower = _Follower(flight, joined)
        try:
            await flight.head()
            headers = to_client(flight.headers, outcome, length=False)
            if is_event_stream(flight.headers):
                return Reply(flight.status, headers, follower)
            await flight.whole()
        except BaseException as error:
            follower.end(error_name(error))
            if isinstance(error, _FAILURES):
                return error_reply(error, outcome)
            raise
        follower.end(None)
        return Reply(flight.status, headers, b"".join(flight.pieces))

    def _store(self, key: bytes, flight: Flight, answer: Answer, record: CallRecord) -> None:
        """Keep the answer if it is whole: never an error, a refusal, or a stream without its final event."""
        if self.cache is None or not record.info.complete or record.info.refused:
            return
        body = b"".join(flight.pieces)
        stored = StoredReply(
            headers=[*to_store(answer.headers), (b"x-paceline-cache", b"hit")],
            pieces=_events(body) if answer.stream else [body],
            stream=answer.stream,
            cost_usd=record.cost_usd,
        )
        self.cache.put(key, stored)


class _Follower:
    """One caller's view of a shared call: the body as an iterator, and the end counted once."""

    def __init__(self, flight: Flight, joined: CallRecord | None) -> None:
        self._flight = flight
        self._joined = joined
        self._pieces = flight.follow()
        self._over = False

    def __aiter__(self) -> "_Follower":
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._pieces.__anext__()
        except StopAsyncIteration:
            self.end(None)
            raise
        except UpstreamError as error:
            self.end(error_name(error))
            raise

    async def aclose(self) -> None:
        """The caller is gone, or has everything."""
        self.end("client_closed")

    def end(self, error: str | None) -> None:
        """Leave the call; a joined one writes its span."""
        if self._over:
            return
        self._over = True
        self._flight.leave()
        if self._joined is not None:
            self._joined.shared("join", self._flight.status, self._flight.cost_usd)
            self._joined.finish(error)


def _replay(stored: StoredReply, record: CallRecord) -> Reply:
    record.shared("hit", 200, stored.cost_usd)
    record.finish()
    return Reply(200, stored.headers, stored.pieces if stored.stream else stored.pieces[0])


def _events(body: bytes) -> list[bytes]:
    """A stream's body cut after each event."""
    *events, rest = body.split(b"\n\n")
    return [event + b"\n\n" for event in events] + ([rest] if rest else [])
