"""One attempt: a call at one lane, from the moment it may go until everything it holds is given back."""

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from paceline.accelerate.limits import Signal, signal_of
from paceline.accelerate.routing.call import RoutedCall
from paceline.accelerate.routing.gates import Permit
from paceline.accelerate.routing.lanes import Lane
from paceline.accelerate.routing.opening import FAILED, HOLD, Opening
from paceline.accelerate.routing.verdict import Judge, Verdict, is_failure, never_sent
from paceline.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from paceline.wire.client import ClientReply
from paceline.wire.clients import IncomingReply

T = TypeVar("T")
_WHOLE_BYTES = 4 * 1024 * 1024
# Reading and weighing the limits an answer states takes 20 us, so at most this often for a place that answers well.
_LISTEN_S = 0.05
_TAKEN = Signal(status=200)


class Attempt:
    """Holds a place in the lane, a permit, and once the head is here a connection. Whoever begins it ends it."""

    __slots__ = (
        "_adaptive",
        "_begun",
        "_call",
        "_over",
        "_probe",
        "_started_s",
        "error",
        "is_read",
        "lane",
        "permit",
        "ready",
        "refusal",
        "reply",
        "signal",
        "status",
        "verdict",
    )

    def __init__(self, call: RoutedCall, lane: Lane, permit: Permit | None, *, adaptive: bool) -> None:
        """`adaptive`: the limits learn from every answer."""
        self.lane = lane
        self.permit = permit
        self.reply: IncomingReply | None = None
        self.status = 0  # of the answer, or of the error its stream begins with; 0: none came
        self.ready: list[bytes] = []  # what of the body was read before it went to the caller
        self.is_read = False  # that is all of it
        self.refusal: bytes | None = None  # the error, as JSON
        self.error: UpstreamError | None = None
        self.signal: Signal | None = None  # of a refusal, and of any answer that limits want to hear of
        self.verdict = Verdict.ANSWER
        self._call = call
        self._adaptive = adaptive
        self._begun: ClientReply | None = None  # sent, its head is awaited
        self._over = False
        self._started_s = call.now_s()
        self._probe = lane.begin(self._started_s)

    @property
    def what(self) -> str:
        """How a log calls its failure."""
        if self.error is None:
            return str(self.status)
        return "upstream_timeout" if isinstance(self.error, UpstreamTimeout) else "upstream_broken"

    async def run(self, judge: Judge, *, guarded: bool) -> None:
        """Send, wait for the head (`guarded`: for a stream's first token, or the whole answer), judge what came.

        An UpstreamError is kept in `error`. Cancelled or not, what is held is held until `end`.
        """
        try:
            alarm_s = self._call.alarm_s(self.lane.target.client.timeouts)
            if alarm_s is None:
                await self._exchange(guarded)
            else:
                await self._by(alarm_s, self._exchange(guarded))
        except UpstreamError as error:
            self.error = error
            self.verdict = judge.of_error(error, idempotent=self._call.idempotent)
        else:
            if self.refusal is not None:
                self.verdict = judge.of_refusal(
                    self.status,
                    self.refusal,
                    should_retry=self.reply.header(b"x-should-retry") if self.reply is not None else None,
                    no_quota=self.signal is not None and self.signal.quota_exhausted,
                    own_key=self.lane.target.has_own_key,
                    idempotent=self._call.idempotent,
                )
        if self.permit is not None and self.signal is not None:
            self.permit.heard(self.signal)

    async def in_time(self, work: Awaitable[T]) -> T:
        """Wait for it until the caller's deadline; then UpstreamTimeout, phase "total"."""
        alarm_s = self._call.alarm_s(self.lane.target.client.timeouts)
        return await (work if alarm_s is None else self._by(alarm_s, work))

    async def _by(self, alarm_s: float, work: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout_at(alarm_s):
                return await work
        except TimeoutError as error:
            raise self._call.too_late(self.lane.target.client.base_url) from error

    def end(self, *, failed: bool | None = None, tokens: int | None = None, output_tokens: int | None = None) -> None:
        """Give everything back, once.

        Args:
            failed: Whether it speaks against the lane; None: it says nothing about it.
            tokens: What it took in all, where that is known.
            output_tokens: Those of them that the model wrote.
        """
        if self._over:
            return
        self._over = True
        held = self.reply or self._begun
        if held is not None and not held.done:
            held.close()
        lane = self.lane
        lane.end(self._call.now_s(), failed=failed, probe=self._probe)
        if self.permit is not None:
            if output_tokens is not None:
                lane.wrote(output_tokens)
            if tokens is not None:
                self.permit.used(tokens)
            self.permit.leave()

    def fail(self) -> None:
        """Over without serving the caller; noted."""
        error = self.error
        billed = error is not None and not never_sent(error) and (self.status == 200 or _had_time(error))
        self._call.note(self.lane, self.what, billed=billed)
        broken = error is not None or is_failure(self.status) or self.verdict is Verdict.ELSEWHERE
        self.end(failed=broken, tokens=None if billed else 0)

    def lose(self) -> None:
        """Given up for a faster one. The time it took so far is a lower bound of what it would have taken."""
        if not self._over:
            now_s = self._call.now_s()
            self.lane.answered(now_s - self._started_s, now_s, stream=self._call.stream)
            self._call.note(self.lane, "lost to a hedge", billed=True)
            self.end()

    def begin(self) -> ClientReply | None:
        """Send now, if a connection is at hand: else None, and `run` will send."""
        call, client = self._call, self.lane.target.client
        worded = call.worded_for(self.lane)
        reply = client.begin(call.method, worded.target, worded.headers, worded.body)
        if reply is not None:
            self._begun = reply
            call.record.sent()
        return reply

    def answered_whole(self, reply: ClientReply) -> None:
        """All of a good answer to what was begun has come."""
        self.reply = reply
        self.status = reply.status
        call, now_s = self._call, self._call.now_s()
        self._listen(reply, now_s)
        if self.permit is not None and self.signal is not None:
            self.permit.heard(self.signal)
        if self.lane.is_watched:
            self.lane.answered(now_s - self._started_s, now_s, stream=call.stream)
        call.arrived(self.lane, None)

    async def _exchange(self, guarded: bool) -> None:
        call, lane = self._call, self.lane
        client, begun = lane.target.client, self._begun
        if begun is None:
            worded = call.worded_for(lane)
            call.record.sent()
            reply = await client.request(call.method, worded.target, worded.headers, worded.body)
        else:
            reply = await begun.arrived()
        self.reply, self._begun = reply, None
        self.status = reply.status
        if reply.status >= 400:
            self.refusal = await self._read(reply)
            self.signal = signal_of(reply.status, reply.headers, self.refusal, time.time())
            return
        now_s = call.now_s()
        self._listen(reply, now_s)
        if guarded:
            if (reply.header(b"content-type") or b"").startswith(b"text/event-stream"):
                await self._open(reply)
                now_s = call.now_s()
            elif not call.stream and is_small(reply):  # Gemini's streams may be one long JSON array
                await self._read(reply)
        if lane.is_watched:
            lane.answered(now_s - self._started_s, now_s, stream=call.stream)

    def _listen(self, reply: IncomingReply, now_s: float) -> None:
        """What a good answer says about the limits, where they learn."""
        if not self._adaptive:
            return
        self.signal = _TAKEN
        if now_s - self.lane.listened_s >= _LISTEN_S:
            self.lane.listened_s = now_s
            self.signal = signal_of(reply.status, reply.headers, None, time.time())

    async def _read(self, reply: IncomingReply) -> bytes:
        body = await reply.read()
        self.ready = [body] if body else []
        self.is_read = True
        return body

    async def _open(self, reply: IncomingReply) -> None:
        """Read up to the first token. A stream that ends before it, or begins with an error, has failed."""
        opening = Opening()
        self.ready = opening.pieces
        async for piece in reply:
            if opening.feed(piece) != HOLD:
                break
        if opening.state == HOLD:
            target = self.lane.target.client.base_url
            raise UpstreamBroken(f"{target}: the stream ended before its first token", target=target)
        if opening.state == FAILED:
            self.status = opening.status
            self.is_read = True  # what follows an error is of no use
            self.refusal = _error_in(opening.pieces)
            self.signal = signal_of(self.status, reply.headers, self.refusal, time.time())


def is_small(reply: IncomingReply) -> bool:
    """True when it is worth taking whole before a byte is sent on: then a broken one can be sent again, or becomes a
    clean 502."""
    length = reply.header(b"content-length")
    return length is None or int(length) <= _WHOLE_BYTES


def _error_in(pieces: list[bytes]) -> bytes:
    """The data of the last event: the error."""
    return b"".join(pieces).rpartition(b"data:")[2].strip()


def _had_time(error: UpstreamError) -> bool:
    """True when the provider had the request for long enough to have worked on it."""
    return isinstance(error, UpstreamTimeout)
