"""Single-flight: one call, many followers, and it belongs to all of them."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.accelerate.builders import run_virtual

from paceline.accelerate.single_flight import Flight, SingleFlight

Produce = Callable[[Flight], Awaitable[None]]


def producing(pieces: int, *, fail: bool = False) -> Produce:
    """Head after 1 s, a piece each second after it."""

    async def produce(flight: Flight) -> None:
        await asyncio.sleep(1)
        flight.begin(200, [], stream=True)
        for i in range(pieces):
            await asyncio.sleep(1)
            flight.add(b"%d" % i)
        if fail:
            raise OSError("broke off")

    return produce


async def follow(flight: Flight, count: int | None = None) -> list[tuple[float, bytes]]:
    """Pieces with the time they came, at most `count`."""
    flight.join()
    try:
        await flight.head()
        seen = []
        async for piece in flight.follow():
            seen.append((asyncio.get_running_loop().time(), piece))
            if len(seen) == count:
                break
        return seen
    finally:
        flight.leave()


def start(calls: SingleFlight, produce: Produce) -> Flight:
    """A call under way with the key `k`."""
    flight = calls.begin(b"k")
    flight.start(produce)
    return flight


def test_a_late_joiner_gets_the_buffer_then_the_rest_live() -> None:
    """What has come arrives at once, what comes arrives when it comes."""

    async def main() -> None:
        calls = SingleFlight()
        flight = start(calls, producing(4))
        first = asyncio.create_task(follow(flight))
        await asyncio.sleep(3.5)
        assert calls.get(b"k") is flight
        late = await follow(flight)
        assert late == [(3.5, b"0"), (3.5, b"1"), (4.0, b"2"), (5.0, b"3")]
        assert [piece for _, piece in await first] == [b"0", b"1", b"2", b"3"]
        assert (len(calls), calls.get(b"k")) == (0, None)

    run_virtual(main())


def test_the_first_one_leaving_changes_nothing_for_the_others() -> None:
    """The caller that started the call is cancelled; the one that joined gets everything."""

    async def main() -> None:
        flight = start(SingleFlight(), producing(3))
        first, second = asyncio.create_task(follow(flight)), asyncio.create_task(follow(flight))
        await asyncio.sleep(2.5)
        first.cancel()
        assert [piece for _, piece in await second] == [b"0", b"1", b"2"]

    run_virtual(main())


def test_the_last_one_leaving_cancels_the_call() -> None:
    """Nobody pays for an answer nobody wants, and the next equal call starts anew."""
    cancelled = []

    async def produce(flight: Flight) -> None:
        flight.begin(200, [], stream=True)
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            cancelled.append(asyncio.get_running_loop().time())
            raise

    async def main() -> None:
        calls = SingleFlight()
        followers = [asyncio.create_task(follow(start(calls, produce)))]
        followers.append(asyncio.create_task(follow(calls.get(b"k") or Flight())))
        for follower in followers:
            await asyncio.sleep(1)
            follower.cancel()
        await asyncio.sleep(0)
        assert calls.get(b"k") is None
        await asyncio.sleep(0)
        assert len(calls) == 0

    run_virtual(main())
    assert cancelled == [2.0]


@pytest.mark.parametrize("pieces", [0, 2])
def test_a_failure_reaches_every_follower_where_it_happened(pieces: int) -> None:
    """All get what came before it, then the same error."""

    async def main() -> None:
        flight = start(SingleFlight(), producing(pieces, fail=True))
        outcomes = await asyncio.gather(*(follow(flight) for _ in range(3)), return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["broke off"] * 3
        assert len(flight.pieces) == pieces
        with pytest.raises(OSError, match="broke off"):
            await flight.whole()

    run_virtual(main())


def test_a_failure_before_the_head_is_raised_by_head() -> None:
    """A call that never began says why."""

    async def produce(flight: Flight) -> None:
        await asyncio.sleep(1)
        raise OSError("refused")

    async def main() -> None:
        flight = start(SingleFlight(), produce)
        flight.join()
        with pytest.raises(OSError, match="refused"):
            await flight.head()
        flight.leave()

    run_virtual(main())


def test_a_caller_cancelled_before_it_began_leaves_the_call_joinable() -> None:
    """Between the start of a call and its first follower, an equal one can still join."""

    async def main() -> None:
        calls = SingleFlight()
        flight = start(calls, producing(1))
        assert calls.get(b"k") is flight
        assert [piece for _, piece in await follow(flight)] == [b"0"]

    run_virtual(main())
