"""Begun: a call whose first attempt was sent at once, and which needs no task while that goes well."""

from collections.abc import Awaitable, Callable, Generator
from typing import Any

import msgspec

from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.answer import Answer, give_back, kind_of
from paceline.accelerate.routing.attempt import Attempt, is_small
from paceline.wire.client import ClientReply
from paceline.wire.http import Reply
from paceline.wire.pending import Pending

_ANY = 1000  # above every status


class Begun(msgspec.Struct, eq=False):
    """A call that was sent. Awaited, it gives its answer, whatever has to be done for that; or `give_up`."""

    reply: ClientReply
    record: CallRecord
    attempt: Attempt | None  # None: nothing can be done about a failure, any answer is the caller's
    go_on: Callable[[], Awaitable[Answer]]

    def __await__(self) -> Generator[Any, Any, Answer]:
        return self.go_on().__await__()

    def take(self, *, encoded: bool) -> bytes:
        """The body of a plain answer that is all here and no refusal; with that the call is over."""
        reply, record, attempt = self.reply, self.record, self.attempt
        body = reply.read_now()
        if attempt is None:
            record.answered(reply.status, reply.headers, body, encoded=encoded)
            return body
        try:
            attempt.answered_whole(reply)
            record.answered(reply.status, reply.headers, body, encoded=encoded)
        finally:
            give_back(attempt, record, None)
        return body

    def give_up(self) -> None:
        """Nobody wants it any more."""
        self.reply.listener = None
        if self.attempt is not None:
            self.attempt.end()
        else:
            self.reply.close()


class Underway(Pending[Reply]):
    """The reply of a call that was begun, as long as that goes well: all of a plain answer comes, and is no refusal."""

    _has_head = False

    def __init__(self, begun: Begun) -> None:
        self._begun = begun
        begun.reply.listener = self._heard

    def _whole(self, *, encoded: bool) -> None:
        """It went well: `take` the answer. Must not raise: the connection calls this."""
        raise NotImplementedError

    def _otherwise(self) -> None:
        """It is a stream, or did not go well, or will not come at once. Must not raise."""
        raise NotImplementedError

    def _heard(self) -> None:
        begun = self._begun
        reply = begun.reply
        if reply.error is None and 0 < reply.status < (_ANY if begun.attempt is None else 400):
            stream, encoded = kind_of(reply, begun.record)
            if not stream:
                if reply.done:
                    reply.listener = None
                    self._whole(encoded=encoded)
                    return
                if not self._has_head and is_small(reply):
                    self._has_head = True  # the rest is on its way
                    return
        reply.listener = None
        self._otherwise()
