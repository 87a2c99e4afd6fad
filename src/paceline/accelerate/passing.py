"""Passing on: one call sent on and its answer sent back, sharing nothing."""

import asyncio
from collections.abc import Awaitable

from paceline.accelerate.headers import to_client
from paceline.accelerate.record import CallRecord
from paceline.accelerate.replay import USD
from paceline.accelerate.routing.answer import Answer
from paceline.accelerate.routing.begun import Begun, Underway
from paceline.accelerate.routing.replies import error_name, error_reply
from paceline.accelerate.sending import PartOfBatch
from paceline.errors import Overloaded, UpstreamError
from paceline.wire.client import ClientReply
from paceline.wire.dialects import dialect_for
from paceline.wire.http import HttpRequest, Reply

FAILURES = (UpstreamError, Overloaded)


class PassedOn(Underway):
    """The reply of a call that was begun: its answer when all of it came, else what `pass_on` makes of it."""

    def __init__(self, begun: Begun, request: HttpRequest) -> None:
        super().__init__(begun)
        self._request = request

    def cancel(self) -> None:
        """The caller is gone."""
        super().cancel()
        self._begun.give_up()
        self._begun.record.finish(error_name(asyncio.CancelledError()))

    def _whole(self, *, encoded: bool) -> None:
        begun = self._begun
        try:
            body = begun.take(encoded=encoded)
            reply = _whole(begun.reply, body, self._request, begun.record)
        except Exception as error:  # noqa: BLE001 - raised where it is awaited: here it would break the connection
            self._fail(error)
        else:
            self._ready(reply)

    def _otherwise(self) -> None:
        self._ready()

    async def _rest(self) -> Reply:
        return await pass_on(self._begun, self._request, self._begun.record)


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


def _whole(answer: Answer | PartOfBatch | ClientReply, body: bytes, request: HttpRequest, record: CallRecord) -> Reply:
    headers = to_client(answer.headers, b"bypass", length=request.method == "HEAD")
    if record.cost_usd is not None:
        headers = headers.plus(b"x-paceline-cost-usd", USD % record.cost_usd)
    return Reply(answer.status, headers, body)
