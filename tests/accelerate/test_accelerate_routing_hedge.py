"""Hedging: the second wins, loses, is not made; the loser is gone, its cost is counted. Virtual seconds."""

import asyncio

import msgspec
import pytest
from tests.accelerate.routing_builders import (
    EVENTS,
    MODEL,
    PLAIN,
    ROLE,
    STREAM,
    Bench,
    Moment,
    Play,
    bench,
    deployment,
    provider,
    refuses,
    run_virtual,
    says,
)
from tests.wire.builders import RESET, STALL, STREAM_END, STREAM_HEAD, ScriptedServer, chunk

from paceline.accelerate.limits import Limits, LimitsPolicy
from paceline.accelerate.routing.policy import HedgePolicy, RetryPolicy, RoutingPolicy

# A call is late after 1.25 s: all usual ones take 1 s, and a quantile of 1 s would race with them.
HEDGE = HedgePolicy(enabled=True, min_calls=20, min_wait_s=1.25, budget_ratio=0.05)
CUT: list[Moment] = [1.5, b"HTTP/1.1 200", RESET]  # a kept connection cut without a byte is replaced by the client
USUAL = 40  # calls of 1 s each: the quantile is known, two hedges are earned


def hedging(*servers: ScriptedServer, **fields: object) -> RoutingPolicy:
    """Deployments of one model, hedged."""
    named = [deployment(f"d{number}", server) for number, server in enumerate(servers)]
    return msgspec.structs.replace(RoutingPolicy(deployments=named, hedge=HEDGE), **fields)


async def warm(b: Bench, count: int = USUAL, *, stream: bool = False) -> None:
    """As many calls as teach it that a first byte takes 1 s."""
    for _ in range(count):
        assert (await b.ask(stream=stream)).status == 200


def late_when_told(text: str, *, usual_s: float = 1.0) -> tuple[list[float], Play]:
    """A provider that takes `usual_s`, or what the list says while it says something."""
    delays: list[float] = []
    return delays, lambda number, request: says(text, after_s=delays.pop() if delays else usual_s)


def test_the_second_wins_and_the_first_is_hung_up() -> None:
    """Late by nine seconds: after 1.25 s it is asked elsewhere, and answered a second later."""

    async def main() -> None:
        slow, play = late_when_told("east")
        async with (
            provider(play) as east,
            provider(says("west", after_s=1.0)) as west,
            bench(hedging(east, west), rand=lambda: 0.0) as b,
        ):
            await warm(b)
            asked = len(west.requests)
            for lane in b.dispatcher._plans.find("openai", MODEL, None).stages[0].lanes:
                lane.weight = 1000.0 if lane.target.name == "d0" else 1.0  # the next call goes east
            slow.append(10.0)
            outcome = await b.ask()
            assert outcome.text == "west"
            assert outcome.took_s == pytest.approx(2.25, abs=0.01)
            assert outcome.taken.hedged
            assert outcome.taken.deployment == "d1"
            assert [str(attempt) for attempt in outcome.taken.failed] == ["d0 lost to a hedge"]
            assert outcome.taken.wasted_usd > 0
            assert outcome.record.attempts == 2
            assert len(west.requests) == asked + 1
            await asyncio.sleep(0.1)
            assert east.open == 0  # hung up
            assert b.settled()

    run_virtual(main())


def test_the_first_wins_and_the_second_is_hung_up() -> None:
    """A little late: the second is asked, and given up when the first answers."""

    async def main() -> None:
        slow, play = late_when_told("only")
        async with provider(play) as server, bench(hedging(server)) as b:
            await warm(b)
            slow[:] = [5.0, 1.5]  # popped from the end: the first takes 1.5 s, the second 5 s
            outcome = await b.ask()
            assert outcome.took_s == pytest.approx(1.5, abs=0.01)
            assert (outcome.taken.hedged, outcome.record.attempts) == (True, 2)
            assert [attempt.what for attempt in outcome.taken.failed] == ["lost to a hedge"]
            await asyncio.sleep(0.1)
            assert server.open == b.clients.idle == 1

    run_virtual(main())


def test_streams_race_for_the_first_token() -> None:
    """A head and a role do not win; the caller sees one stream, whole."""

    async def main() -> None:
        announced: list[Moment] = [STREAM_HEAD, chunk(ROLE), STALL]
        plays: list[list[Moment]] = []
        usual: list[Moment] = [1.0, *STREAM]
        async with (
            provider(lambda number, request: plays.pop() if plays else usual) as server,
            bench(hedging(server)) as b,
        ):
            await warm(b, stream=True)
            plays.append(announced)
            outcome = await b.ask(stream=True)
            assert outcome.body == b"".join(EVENTS)
            assert outcome.took_s == pytest.approx(2.25, abs=0.01)

    run_virtual(main())


def test_a_first_that_fails_late_leaves_the_second_to_answer() -> None:
    """No retry is needed: the hedge is already on its way."""

    async def main() -> None:
        plays: list[list[Moment]] = []
        async with (
            provider(lambda number, request: plays.pop() if plays else says("ok", after_s=1.0)) as server,
            bench(hedging(server)) as b,
        ):
            await warm(b)
            plays[:] = [CUT]
            outcome = await b.ask()
            assert outcome.text == "ok"
            assert outcome.took_s == pytest.approx(2.25, abs=0.01)
            assert [attempt.what for attempt in outcome.taken.failed] == ["upstream_broken"]

    run_virtual(main())


def test_when_both_fail_the_call_fails_once() -> None:
    """Without retries the last failure is the caller's; nothing is held."""

    async def main() -> None:
        plays: list[list[Moment]] = []
        async with (
            provider(lambda number, request: plays.pop() if plays else says("ok", after_s=1.0)) as server,
            bench(hedging(server)) as b,
        ):
            await warm(b)
            plays[:] = [[1.2, *refuses(500)], CUT]  # the first is cut at 1.5 s, the second fails at 2.45
            outcome = await b.ask()
            assert outcome.status == 500
            assert outcome.took_s == pytest.approx(2.45, abs=0.01)
            assert outcome.taken.story() == "d0 upstream_broken, d0 500"
            assert (await b.ask()).status == 200

    run_virtual(main())


def test_a_failure_before_the_quantile_is_retried_not_hedged() -> None:
    """Hedging is for lateness."""

    async def main() -> None:
        plays: list[list[Moment]] = []
        async with provider(lambda number, request: plays.pop() if plays else says("ok", after_s=1.0)) as server:
            policy = hedging(server, retries=RetryPolicy(enabled=True))
            async with bench(policy, rand=lambda: 0.0) as b:
                await warm(b)
                plays.append([b"HTTP", RESET])
                outcome = await b.ask()
                assert (outcome.text, outcome.taken.hedged) == ("ok", False)

    run_virtual(main())


@pytest.mark.parametrize("headers", [{"x-paceline-idempotent": "false"}], ids=["marked"])
def test_a_call_that_must_not_be_made_twice_is_not_hedged(headers: dict[str, str]) -> None:
    """It waits as long as it takes."""

    async def main() -> None:
        slow, play = late_when_told("only")
        async with provider(play) as server, bench(hedging(server)) as b:
            await warm(b)
            slow.append(10.0)
            outcome = await b.ask(headers=headers)
            assert (outcome.record.attempts, outcome.taken.hedged) == (1, False)
            slow.append(10.0)
            assert (await b.ask(background=True)).record.attempts == 1

    run_virtual(main())


@pytest.mark.slow
def test_the_budget_of_second_calls_is_kept() -> None:
    """A provider that became slow altogether gets 5 % more calls, not twice as many."""

    async def main() -> None:
        usual = [1.0]
        async with (
            provider(lambda number, request: says("ok", after_s=usual[0])) as server,
            bench(hedging(server)) as b,
        ):
            await warm(b)
            usual[0] = 5.0
            for _ in range(100):
                await asyncio.gather(*(b.ask() for _ in range(3)))
            calls = USUAL + 300
            assert calls < len(server.requests) <= calls * 1.05

    run_virtual(main())


def test_limits_are_kept_by_second_calls_as_well() -> None:
    """One call at once is allowed, so the late one has no rival; it waits for no turn."""

    async def main() -> None:
        slow, play = late_when_told("only")

        def one_at_once() -> Limits:
            return Limits(LimitsPolicy(concurrency=1), now_s=asyncio.get_running_loop().time)

        async with provider(play) as server, bench(hedging(server), limits=one_at_once) as b:
            await warm(b)
            slow.append(10.0)
            outcome = await b.ask()
            assert outcome.record.attempts == 1
            assert outcome.took_s == pytest.approx(10.0)

    run_virtual(main())


@pytest.mark.parametrize("after_s", [0.5, 1.5], ids=["alone", "raced"])
def test_a_caller_that_leaves_ends_both(after_s: float) -> None:
    """Cancelled before the second is asked, or while both are."""

    async def main() -> None:
        slow, play = late_when_told("only")
        async with provider(play) as server, bench(hedging(server)) as b:
            await warm(b)
            slow[:] = [100.0, 100.0]
            asking = asyncio.create_task(b.ask())
            await asyncio.sleep(after_s)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.sleep(0.1)
            assert server.open == b.clients.idle
            assert b.settled()

    run_virtual(main())


def test_a_deadline_around_a_raced_call_is_still_kept() -> None:
    """The interruption that ends the first is not mistaken for the caller's own time-out."""

    async def main() -> None:
        slow, play = late_when_told("only")
        async with provider(play) as server, bench(hedging(server)) as b:
            await warm(b)
            slow[:] = [100.0, 100.0]
            start_s = asyncio.get_running_loop().time()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(3.0):
                    await b.ask()
            assert asyncio.get_running_loop().time() - start_s == pytest.approx(3.0)
            slow[:] = [0.2, 100.0]
            async with asyncio.timeout(30.0):
                assert (await b.ask()).took_s == pytest.approx(1.45, abs=0.01)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

    run_virtual(main())


def test_a_stream_is_not_hedged_once_it_runs() -> None:
    """A pause after the first token is no lateness."""

    async def main() -> None:
        pausing: list[Moment] = [
            1.0,
            STREAM_HEAD,
            *(chunk(event) for event in EVENTS[:2]),
            20.0,
            chunk(EVENTS[2]),
            STREAM_END,
        ]
        async with (
            provider(lambda number, request: pausing if number == USUAL else [1.0, *STREAM]) as server,
            bench(hedging(server)) as b,
        ):
            await warm(b, stream=True)
            outcome = await b.ask(stream=True)
            assert outcome.took_s == pytest.approx(21.0)
            assert outcome.record.attempts == 1

    run_virtual(main())


def test_too_few_calls_seen_and_none_is_hedged() -> None:
    """Nobody knows yet what late is."""

    async def main() -> None:
        async with (
            provider(lambda number, request: says("ok", after_s=10.0) if number == 5 else PLAIN) as server,
            bench(hedging(server)) as b,
        ):
            await warm(b, 8)
            assert len(server.requests) == 8

    run_virtual(main())
