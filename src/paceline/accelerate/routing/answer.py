"""Answer: what goes back to the caller, and what it holds until it is over."""

import asyncio
from collections.abc import Awaitable

from paceline.accelerate.headers import answer_kind
from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.attempt import Attempt, is_small
from paceline.accelerate.routing.replies import error_name
from paceline.accelerate.routing.verdict import is_failure
from paceline.errors import UpstreamError
from paceline.wire.clients import IncomingReply
from paceline.wire.gemini import GEMINI
from paceline.wire.http import Take


class Answer:
    """The provider's answer: status, headers, and the body as an iterator that records what passes.

    Its place in the lane, its permit and its connection are held until it is exhausted or `aclose`d.
    """

    __slots__ = ("_attempt", "_is_read", "_over", "_ready", "_record", "_reply", "headers", "status", "stream")

    def __init__(
        self,
        reply: IncomingReply,
        record: CallRecord,
        attempt: Attempt | None,
        kind: tuple[bool, bool],
    ) -> None:
        """`attempt` None: nothing is limited or watched. `kind`: its `kind_of`."""
        self.status = reply.status
        self.headers = reply.headers
        self.stream, encoded = kind
        self._reply = reply
        self._record = record
        self._attempt = attempt
        self._over = False
        self._ready = [] if attempt is None else attempt.ready
        self._is_read = attempt is not None and attempt.is_read
        record.head(reply.status, reply.headers, stream=self.stream, encoded=encoded)

    def __aiter__(self) -> "Answer":
        return self

    async def __anext__(self) -> bytes:
        """The next piece; UpstreamError where the provider broke off."""
        if self._ready:
            data = self._ready.pop(0)
        elif self._is_read:
            self._end(None)
            raise StopAsyncIteration
        else:
            try:
                data = await self._reply.__anext__()
            except StopAsyncIteration:
                self._end(None)
                raise
            except UpstreamError as error:
                self._end(error)
                raise
        self._record.saw(data)
        return data

    @property
    def is_small(self) -> bool:
        """True when it is worth taking whole before a byte is sent on: then a broken one becomes a clean 502."""
        has_length = self._record.asked is not None or self._reply.header(b"content-length") is not None
        return has_length and is_small(self._reply)

    async def whole(self) -> bytes:
        """The whole body; UpstreamError when it breaks off, is larger than the client's limit, or comes too late."""
        try:
            if self._is_read:
                body = b""
            elif self._attempt is None or self._reply.done:
                body = await self._reply.read()
            else:
                body = await self._attempt.in_time(self._reply.read())
        except BaseException as error:
            self._end(error)
            raise
        if self._ready:
            body = b"".join([*self._ready, body]) if body or len(self._ready) > 1 else self._ready[0]
        self._record.saw(body)
        self._end(None)
        return body

    async def forward(self, take: Take) -> None:
        """Give every piece to `take` in the moment it arrives; UpstreamError where the provider broke off."""
        saw = self._record.saw

        def watched(data: bytes) -> Awaitable[None] | None:
            saw(data)
            return take(data)

        while self._ready:
            held = watched(self._ready.pop(0))
            if held is not None:
                await held
        try:
            if not self._is_read:
                await self._reply.forward(watched)
        except UpstreamError as error:
            self._end(error)
            raise
        self._end(None)

    async def aclose(self) -> None:
        """Give up what has not arrived."""
        self._reply.close()
        self._end(asyncio.CancelledError())

    def _end(self, error: BaseException | None) -> None:
        if self._over:
            return
        self._over = True
        try:
            self._record.finish(None if error is None else error_name(error))
        finally:
            if self._attempt is not None:
                give_back(self._attempt, self._record, error)


def kind_of(reply: IncomingReply, record: CallRecord) -> tuple[bool, bool]:
    """Whether an answer comes as a stream of events, and whether it is compressed."""
    kind = answer_kind(reply.headers)
    asked = record.asked
    # Gemini's streams are one long JSON array unless asked for as events, and their type says no more than that.
    if asked is not None and asked.dialect is GEMINI and asked.info.stream and reply.status == 200:
        return True, kind[1]
    return kind


def give_back(attempt: Attempt, record: CallRecord, error: BaseException | None) -> None:
    """End the attempt of a finished call, and tell what it took."""
    usage = record.usage
    attempt.end(
        failed=is_failure(attempt.status) if error is None else _speaks_against(error),
        tokens=None if usage is None else usage.input_tokens + usage.output_tokens,
        output_tokens=None if usage is None else usage.output_tokens,
    )


def _speaks_against(error: BaseException) -> bool | None:
    return True if isinstance(error, UpstreamError) else None
