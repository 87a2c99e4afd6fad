"""Begun: a call whose first attempt was sent at once, and which needs no task while that goes well."""

from collections.abc import Awaitable, Callable

from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.answer import Answer, kind_of
from paceline.accelerate.routing.attempt import Attempt, is_small
from paceline.wire.client import ClientReply
from paceline.wire.pending import Pending

_ANY = 1000  # above every status


class Begun(Pending[Answer]):
    """Ready with the answer when all of it came and was no refusal; or, where nothing could be done about a failure,
    when a stream begins. Anything else is dealt with by `go_on`, in the task of whoever awaits it then."""

    _has_head = False

    def __init__(
        self,
        reply: ClientReply,
        record: CallRecord,
        attempt: Attempt | None,
        go_on: Callable[[], Awaitable[Answer]],
    ) -> None:
        """`attempt` None: nothing can be done about a failure, any answer is the caller's."""
        self._reply = reply
        self._record = record
        self._attempt = attempt
        self._go_on = go_on
        reply.listener = self._heard

    def cancel(self) -> None:
        """Nobody wants it any more."""
        super().cancel()
        self._reply.listener = None
        if self._attempt is not None:
            self._attempt.end()
        else:
            self._reply.close()

    def _heard(self) -> None:
        reply, attempt = self._reply, self._attempt
        is_good = reply.error is None and 0 < reply.status < (_ANY if attempt is None else 400)
        if is_good:
            kind = kind_of(reply, self._record)
            if kind[0]:
                if attempt is None:
                    self._take(reply, None, kind, None)
                    return
            elif reply.done:
                self._take(reply, attempt, kind, reply.read_now())
                return
            elif not self._has_head and is_small(reply):
                self._has_head = True  # the rest is on its way
                return
        reply.listener = None
        self._ready()

    def _take(self, reply: ClientReply, attempt: Attempt | None, kind: tuple[bool, bool], body: bytes | None) -> None:
        reply.listener = None
        try:
            if attempt is not None:
                attempt.answered_whole(reply)
            answer = Answer(reply, self._record, attempt, kind, body)
        except Exception as error:  # noqa: BLE001 - raised where it is awaited: here it would break the connection
            self.cancel()
            self._fail(error)
        else:
            self._ready(answer)

    async def _rest(self) -> Answer:
        return await self._go_on()
