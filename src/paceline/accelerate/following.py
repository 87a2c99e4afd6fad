"""Following: one caller's reply, made of a call that belongs to all who asked the same."""

from paceline.accelerate.follower import Follower
from paceline.accelerate.headers import to_client
from paceline.accelerate.passing import FAILURES
from paceline.accelerate.record import CallRecord
from paceline.accelerate.replay import USD
from paceline.accelerate.routing.replies import error_name, error_reply
from paceline.accelerate.single_flight import Flight
from paceline.wire.framing import EncodedHeaders
from paceline.wire.http import Reply

_OUTCOME = (b"miss", b"join")  # of a caller who did not, and who did, join another's call


async def follow(flight: Flight, record: CallRecord, *, joined: bool) -> Reply:
    """The reply to one more who follows a call; see `followed`."""
    return await followed(flight, Follower(flight, record if joined else None), record, joined=joined)


async def followed(flight: Flight, follower: Follower, record: CallRecord, *, joined: bool) -> Reply:
    """The reply to one of those who follow a call: its answer as it comes, or whole, or what failed."""
    try:
        await flight.head()
        if not flight.is_stream:
            await flight.whole()
    except BaseException as error:
        follower.end(error_name(error))
        if not isinstance(error, FAILURES):
            raise
        assert record.asked is not None  # noqa: S101 - only model calls are shared
        return error_reply(error, _OUTCOME[joined], record.asked.dialect, record.taken)
    if flight.is_stream:
        return Reply(flight.status, _headers(flight, joined), follower)
    follower.end(None)
    return whole_reply(flight, joined=joined)


def _headers(flight: Flight, joined: bool) -> EncodedHeaders:
    if flight.level is None:
        return to_client(flight.headers, _OUTCOME[joined], length=False)
    headers = to_client(flight.headers, b"hit", length=False)
    return headers.plus(b"x-paceline-cache-level", flight.level.encode())


def whole_reply(flight: Flight, *, joined: bool) -> Reply:
    """The reply of a call that is over."""
    headers, pieces = _headers(flight, joined), flight.pieces
    if flight.cost_usd is not None:
        own = not joined and flight.level is None
        headers = headers.plus(b"x-paceline-cost-usd" if own else b"x-paceline-saved-usd", USD % flight.cost_usd)
    return Reply(flight.status, headers, pieces[0] if len(pieces) == 1 else b"".join(pieces))
