"""Begun: a call whose first attempt was sent at once, and which needs no task while that goes well."""

from collections.abc import Awaitable, Callable

from paceline.accelerate.record import CallRecord
from paceline.accelerate.routing.answer import Answer, streams
from paceline.accelerate.routing.attempt import Attempt, is_small
from paceline.wire.client import ClientReply
from paceline.wire.pending import Pending

_ANY = 1000  # above every status


class Begun(Pending[Answer]):
    """Ready with the answer when all of it came and was no refusal; or, where nothing could be done about a failure,
    when a stream begins. Anything else is dealt with by `go_on`, in the task of whoever awaits it then."""

    __slots__ = ("_attempt", "_go_on", "_has_head", "_record", "_reply")

    def __init__(
        self,
        reply: ClientReply,
        record: CallRecord,
        attempt: Attempt | None,
        go_on: Callable[[], Awaitable[Answer]],
    ) -> None:
        """`attempt` None: nothing can be done about a failure, any answer is the caller's."""
        super().__init__()
        self._reply = reply
        self._record = record
        self._attempt = attempt
        self._go_on = go_on
        self._has_head = False
        reply.listen(self._heard)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        super().cancel()
        self._reply.listen(None)
        if self._attempt is not None:
            self._attempt.end()
        else:
            self._reply.close()

    def _heard(self) -> None:
        reply, attempt = self._reply, self._attempt
        is_good = reply.error is None and 0 < reply.status < (_ANY if attempt is None else 400)
        if is_good and not streams(reply, self._record):
            if reply.done:
                self._take(reply, attempt, whole=True)
                return
            if not self._has_head and is_small(reply):
                self._has_head = True  # the rest is on its way
                return
        elif is_good and attempt is None:
            self._take(reply, None, whole=False)
            return
        reply.listen(None)
        self._ready()

    def _take(self, reply: ClientReply, attempt: Attempt | None, *, whole: bool) -> None:
        reply.listen(None)
        try:
            if attempt is not None:
                attempt.answered_whole(reply)
            answer = Answer(reply, self._record, attempt, body=reply.read_now() if whole else None)
        except Exception as error:  # noqa: BLE001 - raised where it is awaited: here it would break the connection
            self.cancel()
            self._fail(error)
        else:
            self._ready(answer)

    async def _rest(self) -> Answer:
        return await self._go_on()
