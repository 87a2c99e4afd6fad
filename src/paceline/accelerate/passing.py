"""Passing on: one call sent on and its answer sent back, sharing nothing."""

import asyncio
from collections.abc import Awaitable

from paceline.accelerate.headers import to_client
from paceline.accelerate.record import CallRecord
from paceline.accelerate.replay import usd
from paceline.accelerate.routing.answer import Answer
from paceline.accelerate.routing.begun import Begun
from paceline.accelerate.routing.replies import error_name, error_reply
from paceline.accelerate.sending import PartOfBatch
from paceline.errors import Overloaded, UpstreamError
from paceline.wire.dialects import dialect_for
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.pending import Pending

FAILURES = (UpstreamError, Overloaded)


class PassedOn(Pending[Reply]):
    """The reply of a call that was begun: its answer when all of it came, else what `pass_on` makes of it."""

    def __init__(self, begun: Begun, request: HttpRequest, record: CallRecord) -> None:
        self._begun = begun
        self._request = request
        self._record = record
        begun.on_ready(self._answered)

    def cancel(self) -> None:
        """The caller is gone."""
        super().cancel()
        self._begun.cancel()
        self._record.finish(error_name(asyncio.CancelledError()))

    def _answered(self) -> None:
        answer, request, record = self._begun.value, self._request, self._record
        if answer is None:
            self._ready()
            return
        if answer.stream:
            self._ready(_as_it_comes(answer))
            return
        try:
            reply = _whole(answer, answer.whole_now(), request, record)
        except Exception as error:  # noqa: BLE001 - raised where it is awaited: here it would break the connection
            self._fail(error)
        else:
            self._ready(reply)

    async def _rest(self) -> Reply:
        return await pass_on(self._begun, self._request, self._record)


async def pass_on(sent: Awaitable[Answer | PartOfBatch], request: HttpRequest, record: CallRecord) -> Reply:
    """The reply to a call that was sent: its answer, as it comes or whole, or what failed."""
    try:
        answer = await sent
        if answer.stream or not answer.is_small:
            return _as_it_comes(answer)
        body = await answer.whole()
    except FAILURES as error:
        dialect = dialect_for(record.path, request.headers)
        reply = error_reply(error, b"bypass", dialect, record.taken)
        record.status = record.status or reply.status
        record.finish(error_name(error))
        return reply
    except asyncio.CancelledError as error:
        record.finish(error_name(error))
        raise
    return _whole(answer, body, request, record)


def _as_it_comes(answer: Answer | PartOfBatch) -> Reply:
    return Reply(answer.status, to_client(answer.headers, b"bypass", length=True), answer)


def _whole(answer: Answer | PartOfBatch, body: bytes, request: HttpRequest, record: CallRecord) -> Reply:
    headers = to_client(answer.headers, b"bypass", length=request.method == "HEAD")
    if record.cost_usd is not None:
        headers = headers.plus(b"x-paceline-cost-usd", usd(record.cost_usd))
    return Reply(answer.status, headers, body)
