"""Routing behind limits: every attempt passes a gate, a 429 holds it, nothing is amplified. Virtual seconds."""

import asyncio

import msgspec
import pytest
from tests.accelerate.routing_builders import (
    MODEL,
    PLAIN,
    STREAM,
    Moment,
    Outcome,
    Play,
    bench,
    completion,
    deployment,
    in_turn,
    provider,
    refuses,
    run_virtual,
    says,
)
from tests.wire.builders import RESET

from paceline.accelerate.caller import Caller
from paceline.accelerate.limits import AdaptivePolicy, Limits, LimitsPolicy, ModelLimits
from paceline.accelerate.routing.policy import RetryPolicy, RoutingPolicy
from paceline.errors import Overloaded, PacelineError

RETRYING = RoutingPolicy(retries=RetryPolicy(enabled=True))
ADAPTIVE = LimitsPolicy(adaptive=AdaptivePolicy(enabled=True))


def now_s() -> float:
    return asyncio.get_running_loop().time()


def limits(policy: LimitsPolicy) -> Limits:
    """On the loop's clock."""
    return Limits(policy, now_s=now_s)


def bucket(per_s: float, burst: float) -> Play:
    """A provider that takes so many calls a second and answers the rest with 429."""
    level, seen_s = burst, 1000.0

    def play(number: int, request: bytes) -> list[Moment]:
        nonlocal level, seen_s
        level = min(burst, level + (now_s() - seen_s) * per_s)
        seen_s = now_s()
        if level >= 1.0:
            level -= 1.0
            return PLAIN
        return refuses(429, b"retry-after-ms: %d" % (1000 * (1.0 - level) / per_s))

    return play


def test_a_slot_is_held_until_a_stream_is_over() -> None:
    """One at once: the second begins when the first stream's last byte is taken."""

    async def main() -> None:
        async with (
            provider(STREAM) as server,
            bench(RETRYING, upstream=server, limits=lambda: limits(LimitsPolicy(concurrency=1))) as b,
        ):
            answer, _, _ = await b.begin(stream=True)
            waiting = asyncio.create_task(b.ask())
            await asyncio.sleep(5.0)
            assert len(server.requests) == 1
            await answer.aclose()
            outcome = await waiting
            assert outcome.took_s == pytest.approx(5.0)
            assert outcome.record.queued

    run_virtual(main())


def test_a_429_holds_the_gate_and_the_call_keeps_its_place() -> None:
    """Those behind it wait as well; in the end everyone is served, the refused one first."""

    async def main() -> None:
        order: list[str] = []

        def play(number: int, request: bytes) -> list[Moment]:
            if number == 0:
                return refuses(429, b"retry-after: 4")
            order.append("first" if b"first" in request else "later")
            return PLAIN

        async with (
            provider(play) as server,
            bench(RETRYING, upstream=server, limits=lambda: limits(ADAPTIVE), gated=True) as b,
        ):
            first = asyncio.create_task(b.ask("first"))
            await asyncio.sleep(1.0)
            later = [asyncio.create_task(b.ask(f"later {number}")) for number in range(3)]
            outcome = await first
            assert outcome.took_s == pytest.approx(4.0, abs=0.01)
            assert (outcome.record.attempts, outcome.record.queued) == (2, True)
            await asyncio.gather(*later)
            assert order == ["first", "later", "later", "later"]

    run_virtual(main())


@pytest.mark.slow
def test_a_storm_of_429_does_not_reach_the_callers() -> None:
    """10 a second are taken, 20 a second are offered for 10 s: nobody sees a 429, nothing is sent in vain for long."""

    async def main() -> None:
        async with (
            provider(bucket(10.0, 10.0)) as server,
            bench(RETRYING, upstream=server, limits=lambda: limits(ADAPTIVE), gated=True) as b,
        ):
            asking: list[asyncio.Task[Outcome]] = []
            for _ in range(200):
                asking.append(asyncio.create_task(b.ask()))
                await asyncio.sleep(0.05)
            outcomes = await asyncio.gather(*asking)
            assert all(outcome.status == 200 for outcome in outcomes)
            assert now_s() - 1000.0 < 22.0  # 19 s at the very best
            assert len(server.requests) < 200 * 1.2

    run_virtual(main())


def test_a_wait_that_cannot_meet_the_deadline_is_refused_at_once() -> None:
    """429 with Retry-After now, not after the caller has gone."""

    async def main() -> None:
        def policy() -> Limits:
            return limits(LimitsPolicy(requests_per_s=0.1, burst=1))

        async with provider(PLAIN) as server, bench(RETRYING, upstream=server, limits=policy) as b:
            assert (await b.ask()).status == 200
            start_s = now_s()
            with pytest.raises(Overloaded) as caught:
                await b.ask(headers={"x-paceline-timeout-s": "5"})
            assert now_s() == start_s
            assert caught.value.retry_after_s == pytest.approx(10.0)
            assert (await b.ask(headers={"x-paceline-timeout-s": "11"})).took_s == pytest.approx(10.0)

    run_virtual(main())


def test_no_turn_in_time_falls_back_to_another_model() -> None:
    """Its own quota is free."""

    async def main() -> None:
        def policy() -> Limits:
            return limits(LimitsPolicy(models={MODEL: ModelLimits(requests_per_s=0.1, burst=1)}))

        falling = RoutingPolicy(fallbacks={MODEL: ["gpt-4.1"]}, timeout_s=5.0)
        async with provider(PLAIN) as server, bench(falling, upstream=server, limits=policy) as b:
            assert (await b.ask()).taken.fallback is None
            outcome = await b.ask()
            assert (outcome.status, outcome.took_s, outcome.taken.fallback) == (200, 0.0, "gpt-4.1")
            assert outcome.taken.story() == "openai no turn in time"

    run_virtual(main())


def test_each_deployment_has_limits_of_its_own() -> None:
    """A full one passes the call on instead of having it wait; when both are full it waits for the first free slot."""

    async def main() -> None:
        slow = says("ok", after_s=10.0)
        async with provider(slow) as east, provider(slow) as west:
            policy = RoutingPolicy(deployments=[deployment("east", east), deployment("west", west)])
            async with bench(policy, limits=lambda: limits(LimitsPolicy(concurrency=2))) as b:
                outcomes = await asyncio.gather(*(b.ask() for _ in range(5)))
                assert sorted(round(outcome.took_s) for outcome in outcomes) == [10, 10, 10, 10, 20]
                assert sorted((len(east.requests), len(west.requests))) == [2, 3]

    run_virtual(main())


def test_callers_share_the_quota_of_the_key_that_is_used() -> None:
    """Known callers with a provider key of the gateway's own pass one gate; with their own keys each has one."""

    async def main() -> None:
        one, other = (Caller(tenant=bytes([number]) * 32, name=str(number)) for number in (1, 2))

        def policy() -> Limits:
            return limits(LimitsPolicy(requests_per_s=0.1, burst=1))

        async with provider(PLAIN) as server:
            ours = RoutingPolicy(deployments=[deployment("ours", server, key_env="K")])
            async with bench(ours, limits=policy, environ={"K": "k"}) as b:
                assert (await b.ask(caller=one)).took_s == 0.0
                assert (await b.ask(caller=other)).took_s == pytest.approx(10.0)
            async with bench(RoutingPolicy(), upstream=server, limits=policy) as b:
                assert (await b.ask(caller=one)).took_s == 0.0
                assert (await b.ask(caller=other)).took_s == pytest.approx(10.0)  # both carry the same key
                assert (await b.ask(caller=other, headers={"x-api-key": "own"})).took_s == 0.0

    run_virtual(main())


def test_tokens_are_corrected_by_what_a_call_really_took() -> None:
    """An estimate of 250 becomes 1,500; a refused call takes none."""

    async def main() -> None:
        def policy() -> Limits:
            return limits(LimitsPolicy(tokens_per_min=6000))

        async with provider(in_turn(refuses(500), PLAIN)) as server, bench(upstream=server, limits=policy) as b:
            assert (await b.ask()).status == 500
            for _ in range(4):
                assert (await b.ask()).took_s == 0.0
            assert (await b.ask()).took_s > 1.0  # 6,000 are gone

    run_virtual(main())


@pytest.mark.slow
@pytest.mark.parametrize("gated", [False, True], ids=["alone", "limited"])
@pytest.mark.parametrize("play", [[RESET], refuses(500)], ids=["reset", "500"])
def test_an_outage_is_not_amplified(play: list[Moment], gated: bool) -> None:
    """A hundred calls a second, all failing, four attempts allowed: a fifth more calls, and the minimum."""
    policy = msgspec.structs.replace(RETRYING, retries=RetryPolicy(enabled=True, first_backoff_s=0.1))

    def many() -> Limits:
        return limits(LimitsPolicy(concurrency=1000))

    async def main() -> None:
        async with (
            provider(play) as server,
            bench(policy, upstream=server, limits=many if gated else None) as b,
        ):
            asking = []
            for _ in range(200):
                asking.append(asyncio.create_task(b.ask()))
                await asyncio.sleep(0.01)
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
            assert all(isinstance(each, PacelineError) or each.status == 500 for each in outcomes)  # type: ignore[union-attr]
            assert 240 < len(server.requests) <= 200 * 1.2 + 10 + 2 + 1

    run_virtual(main())


def test_a_deployment_may_name_the_limits_that_hold() -> None:
    """Two of one model with quotas of their own."""

    async def main() -> None:
        def policy() -> Limits:
            return limits(LimitsPolicy(models={"small": ModelLimits(concurrency=1), MODEL: ModelLimits(concurrency=3)}))

        slow = says("ok", after_s=10.0)
        async with provider(slow) as east, provider(slow) as west:
            routing = RoutingPolicy(
                deployments=[deployment("east", east, limits="small", model_there="x"), deployment("west", west)]
            )
            async with bench(routing, limits=policy) as b:
                outcomes = await asyncio.gather(*(b.ask() for _ in range(4)))
                assert {round(outcome.took_s) for outcome in outcomes} == {10}
                assert (len(east.requests), len(west.requests)) == (1, 3)
                assert {outcome.taken.model for outcome in outcomes} == {MODEL}
                assert b'"model":"x"' in east.requests[0]

    run_virtual(main())


def test_callers_that_leave_the_queue_leave_nothing() -> None:
    """Cancelled while waiting for a turn."""

    async def main() -> None:
        async with (
            provider(says("ok", after_s=10.0)) as server,
            bench(RETRYING, upstream=server, limits=lambda: limits(LimitsPolicy(concurrency=1))) as b,
        ):
            first = asyncio.create_task(b.ask())
            await asyncio.sleep(1.0)
            asking = asyncio.create_task(b.ask())
            await asyncio.sleep(1.0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert (await first).body == completion("ok")
            assert len(server.requests) == 1

    run_virtual(main())
