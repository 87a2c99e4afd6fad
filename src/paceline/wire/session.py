"""One client connection: what arrives is read by `intake`, handled, and answered in the order it came.

A handler that answers at once costs no task. When the client goes away the handler's task is cancelled and a streaming
body is closed.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from typing import cast

import msgspec

from paceline.wire.framing import CONTINUE, LAST_CHUNK, chunk, encode_head, encode_whole, has_header
from paceline.wire.http import Handler, HttpRequest, Outcome, Reply, Take
from paceline.wire.intake import IDLE, Intake, Refusal, ServerLimits
from paceline.wire.pending import Pending

log = logging.getLogger("paceline.wire")

_PIPELINE = 16  # requests read ahead on one connection before it is no longer read
_LINGER_S = 2.0  # how long what still arrives after a refusal is thrown away, so that the client can read the refusal
_AT_ONCE = (bytes, list)  # bodies that need no task to be sent


class Service:
    """What the sessions of one server share."""

    def __init__(self, handler: Handler, limits: ServerLimits) -> None:
        self.handler = handler
        self.limits = limits
        self.closing = False  # no connection is kept beyond the request it is answering
        self.sessions: set[Session] = set()
        self.loop = asyncio.get_running_loop()
        self.now_s = self.loop.time


class Session(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_drained",
        "_ended",
        "_handler",
        "_intake",
        "_now_s",
        "_pending",
        "_queue",
        "_reading_paused",
        "_refused",
        "_service",
        "_since_s",
        "_transport",
        "active",
        "task",
    )

    def __init__(self, service: Service) -> None:
        self._service = service
        self._handler = service.handler
        self._now_s = service.now_s
        self._queue: deque[HttpRequest | Refusal] = deque()  # read, not answered yet
        self._drained: asyncio.Future[None] | None = None  # set while the client reads slower than we write
        self._reading_paused = False
        self._refused = False  # a refusal is queued or sent: nothing after it is read
        self._ended = False  # nothing more is answered on this connection
        self._since_s = 0.0  # when what `check_time` watches began: a request, idleness, slow reading
        self.active: HttpRequest | None = None
        self._pending: Pending[Reply] | None = None  # what is being answered, while no task waits for it
        self.task: asyncio.Task[None] | None = None

    # --- transport -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop: a client connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own is no subclass
        service, peer = self._service, transport.get_extra_info("peername")
        self._intake = Intake(service.limits, str(peer[0]) if isinstance(peer, tuple) else "")
        self._since_s = self._now_s()
        service.sessions.add(self)
        if service.closing or len(service.sessions) > service.limits.connections:
            self._refuse(Refusal(503, "the server takes no more connections; try again later"))

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        known = self._intake.known_head
        request = known.request(data) if known is not None else None
        if request is None:
            self._read(data)
        elif self.active is None and self._drained is None and not (self._queue or self._ended or self._refused):
            self._dispatch(request)
        else:
            self._enqueue(request)

    def eof_received(self) -> None:
        """A half-closed client counts as gone; returning None closes the transport."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop, last."""
        self._ended = True
        self._intake.close()
        self._service.sessions.discard(self)
        self._queue.clear()
        if self.active is not None:
            self.active.closed = True
        if self._pending is not None:
            self._pending.cancel()
            self._pending = None
        if self.task is not None:
            # Not before its first step: a coroutine cancelled before it began could not undo what the handler did.
            self._service.loop.call_soon(self.task.cancel)
        self.resume_writing()

    def pause_writing(self) -> None:
        """Called by the loop: the client reads slower than we write."""
        self._drained = self._service.loop.create_future()
        self._since_s = self._now_s()

    def resume_writing(self) -> None:
        """Called by the loop: it caught up."""
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)
        self._next()

    def close_if_idle(self) -> None:
        """Close unless a request is being received or answered."""
        if self.active is None and not self._queue and (self._ended or self._intake.stage == IDLE):
            self._end()

    def abort(self) -> None:
        """Cut the connection now; what was being answered is cancelled."""
        self._ended = True
        self._transport.abort()

    def check_time(self, now_s: float) -> None:
        """Enforce the time limits; called about once a second."""
        limits, since_s = self._service.limits, now_s - self._since_s
        if self._drained is not None:
            if since_s > limits.write_s:
                self.abort()
        elif self._ended:
            if since_s > (_LINGER_S if self._refused else limits.write_s):
                self.abort()
        elif self._intake.stage != IDLE:
            if since_s > limits.receive_s and not self._refused:
                self._refuse(Refusal(408, "the request was not received in time"))
        elif self.active is None and since_s > limits.idle_s:
            self._end()

    # --- receiving -----------------------------------------------------------------------------------------------

    def _read(self, data: bytes) -> None:
        if self._ended or self._refused:
            return
        intake = self._intake
        if intake.stage == IDLE:
            self._since_s = self._now_s()
        intake.feed(data)
        if intake.requests:
            requests, intake.requests = intake.requests, []
            for request in requests:
                self._enqueue(request)
        if intake.refusal is not None:
            self._refuse(intake.refusal)
        elif intake.expects_continue and intake.stage != IDLE and self._may_answer:
            intake.expects_continue = False
            self._transport.write(CONTINUE)

    def _enqueue(self, request: HttpRequest) -> None:
        if self._ended or self._refused:
            return
        self._queue.append(request)
        if len(self._queue) >= _PIPELINE and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        self._next()

    def _refuse(self, refusal: Refusal) -> None:
        """Say no after what came before is answered; then the connection ends."""
        self._refused = True
        self._queue.append(refusal)
        self._next()

    # --- answering -----------------------------------------------------------------------------------------------

    @property
    def _may_answer(self) -> bool:
        return self.active is None and self._drained is None and not self._ended

    def _next(self) -> None:
        """Answer what is queued, one after the other, as far as that can be done without waiting."""
        while self._queue and self._may_answer:
            item = self._queue.popleft()
            if isinstance(item, Refusal):
                self._write_whole(error_reply(item.status, str(item)), None)
                self._linger()
                return
            self._dispatch(item)
        if self._reading_paused and not self._queue and not self._ended:
            self._reading_paused = False
            self._transport.resume_reading()

    def _dispatch(self, request: HttpRequest) -> None:
        self.active = request
        try:
            outcome = self._handler(request)
        except Exception:
            log.exception("handler failed for %s %s", request.method, request.path)
            outcome = _FAILED
        if isinstance(outcome, Reply) and isinstance(outcome.body, _AT_ONCE):
            self._write_whole(outcome, request)
            self._finished(request)
        elif isinstance(outcome, Pending):
            self._pending = outcome
            outcome.on_ready(self._ready)
        else:
            self._start(request, outcome)

    def _start(self, request: HttpRequest, outcome: Outcome) -> None:
        # Owned by this session: cancelled in connection_lost, awaited by Server.close.
        self.task = self._service.loop.create_task(self._answer(request, outcome))

    def _ready(self) -> None:
        """What was pending has come: send it, or do in a task what is left to do."""
        pending, request = self._pending, self.active
        if pending is None or request is None:  # cut off meanwhile
            return
        self._pending = None
        reply = pending.value
        if reply is None or not isinstance(reply.body, _AT_ONCE):
            self._start(request, pending)
            return
        self._write_whole(reply, request)
        self._finished(request)
        if self._queue or self._reading_paused:
            self._next()

    async def _answer(self, request: HttpRequest, outcome: Outcome) -> None:
        try:
            reply = outcome if isinstance(outcome, Reply) else await outcome
        except Exception:
            log.exception("handler failed for %s %s", request.method, request.path)
            reply = _FAILED
        if isinstance(reply.body, _AT_ONCE):
            self._write_whole(reply, request)
        elif not await self._write_stream(reply, reply.body, request):
            self.task = None
            self.abort()
            return
        self.task = None
        self._finished(request)
        if self._queue or self._reading_paused:
            self._next()

    def _finished(self, request: HttpRequest) -> None:
        self.active = None
        if self._intake.stage == IDLE:
            self._since_s = self._now_s()
        if not request.keep_alive or self._service.closing:
            self._end()

    def _end(self) -> None:
        """Close once everything written has been sent."""
        self._ended = True
        self._since_s = self._now_s()
        self._transport.close()

    def _linger(self) -> None:
        """Close our side and throw away what still comes: closing at once would reset the client before it reads."""
        self._ended = True
        self._since_s = self._now_s()
        if self._reading_paused:
            self._transport.resume_reading()
        if self._service.closing or not self._transport.can_write_eof():
            self._transport.close()
        else:
            self._transport.write_eof()

    def _write_whole(self, reply: Reply, request: HttpRequest | None) -> None:
        """Send a reply that is all here; `request` is None for a refusal, after which the connection ends."""
        body = reply.body
        assert isinstance(body, _AT_ONCE)  # noqa: S101 - the caller looked; narrows the type
        if request is None:
            self._transport.write(encode_whole(reply.status, reply.headers, body, keep_alive=False))
            return
        keep_alive = request.keep_alive and not self._service.closing
        usual = keep_alive and request.chunks and request.method != "HEAD"
        if usual and reply.wire is not None:
            self._transport.write(reply.wire)
            return
        try:
            if usual:
                data = encode_whole(reply.status, reply.headers, body)
            else:
                data = encode_whole(
                    reply.status,
                    reply.headers,
                    body,
                    chunks=request.chunks,
                    keep_alive=keep_alive,
                    with_body=request.method != "HEAD",
                )
        except ValueError:
            log.exception("a reply cannot be sent")
            self._write_whole(_FAILED, request)
        else:
            self._transport.write(data)

    async def _write_stream(self, reply: Reply, body: AsyncIterator[bytes], request: HttpRequest) -> bool:
        """Send the body as it comes. False: it ended early, so the connection must be cut."""
        sized = has_header(reply.headers, b"content-length")
        chunked = request.chunks and not sized
        request.keep_alive &= chunked or sized
        keep_alive = request.keep_alive and not self._service.closing
        write = self._transport.write

        def take(data: bytes) -> asyncio.Future[None] | None:
            if data:
                write(chunk(data) if chunked else data)
            return self._drained

        try:
            write(encode_head(reply.status, reply.headers, chunked=chunked, keep_alive=keep_alive))
            if request.method != "HEAD":
                await _forward(body, take)
                if chunked:
                    write(LAST_CHUNK)
        except Exception as error:  # noqa: BLE001 - whatever broke the body, the client has to see it cut
            log.info("a streamed reply was cut: %s", error)
            return False
        finally:
            closer = getattr(body, "aclose", None)
            if closer is not None:
                with contextlib.suppress(RuntimeError):  # "already running": the generator is closing by itself
                    await closer()
        return True


async def _forward(body: AsyncIterator[bytes], take: Take) -> None:
    forward = getattr(body, "forward", None)
    if forward is not None:
        await forward(take)
        return
    async for data in body:
        held = take(data)
        if held is not None:
            await held


def error_reply(status: int, message: str) -> Reply:
    """A refusal below any dialect, in the shape most API clients can show."""
    body = msgspec.json.encode({"error": {"message": message, "type": "invalid_request_error", "code": None}})
    return Reply(status, [(b"content-type", b"application/json")], body)


_FAILED = error_reply(500, "the server failed to answer this request")
