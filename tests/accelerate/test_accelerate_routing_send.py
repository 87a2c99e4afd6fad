"""Places that fail: what the caller sees, when, and that nothing is held afterwards. Real sockets, virtual seconds."""

import asyncio
from typing import Any

import msgspec
import pytest
from tests.accelerate.routing_builders import (
    DEAD_URL,
    EVENTS,
    JSON,
    MODEL,
    PLAIN,
    ROLE,
    STREAM,
    Moment,
    bench,
    completion,
    delta,
    deployment,
    in_turn,
    provider,
    refuses,
    run_virtual,
    says,
)
from tests.wire.builders import CLOSE, RESET, STALL, STREAM_END, STREAM_HEAD, chunk, ok

from paceline.accelerate.routing.policy import BreakerPolicy, RetryPolicy, RoutingPolicy
from paceline.accelerate.routing.replies import error_reply
from paceline.accelerate.routing.taken import RouteTaken
from paceline.errors import UpstreamBroken, UpstreamError, UpstreamTimeout
from paceline.wire.client import Timeouts

RETRYING = RoutingPolicy(retries=RetryPolicy(enabled=True))

ANTHROPIC_ERROR = b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}\n\n'


def half() -> float:
    """The middle of every draw, so that times are exact."""
    return 0.5


def backing_off(**fields: Any) -> RoutingPolicy:
    """Retries, with these differences."""
    return RoutingPolicy(retries=RetryPolicy(enabled=True, **fields))


def test_by_default_a_call_goes_once_and_untouched() -> None:
    """The empty policy: the provider's refusal is the caller's, with its very bytes."""

    async def main() -> None:
        async with provider(refuses(500)) as server, bench(upstream=server) as b:
            outcome = await b.ask()
            assert (outcome.status, outcome.record.attempts, len(server.requests)) == (500, 1, 1)
            assert msgspec.json.decode(outcome.body)["error"]["message"] == "no"

    run_virtual(main())


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize(
    ("broken", "what"),
    [
        pytest.param([CLOSE], "upstream_broken", id="no-answer"),
        pytest.param([RESET], "upstream_broken", id="reset"),
        pytest.param([b"garbage\r\n\r\n"], "upstream_broken", id="garbage"),
        pytest.param(refuses(408), "408", id="408"),
        pytest.param(refuses(409), "409", id="409"),
        pytest.param(refuses(500), "500", id="500"),
        pytest.param(refuses(503), "503", id="503"),
        pytest.param(refuses(529), "529", id="529"),
        pytest.param(refuses(418, b"x-should-retry: true"), "418", id="asked-to"),
        pytest.param([ok(b"x" * 99, b"y: z").replace(b"200", b"500")[:70], CLOSE], "upstream_broken", id="cut-refusal"),
    ],
)
def test_a_failure_is_sent_again(broken: list[Moment], what: str, stream: bool) -> None:
    """The caller never sees it, only waits: half of 0.5 s, then half of 1 s."""

    async def main() -> None:
        good = STREAM if stream else PLAIN
        async with provider(in_turn(broken, broken, good)) as server, bench(RETRYING, upstream=server, rand=half) as b:
            outcome = await b.ask(stream=stream)
            assert outcome.status == 200
            assert outcome.body == (b"".join(EVENTS) if stream else completion())
            assert outcome.took_s == pytest.approx(0.75, abs=0.01)
            assert [attempt.what for attempt in outcome.taken.failed] == [what, what]
            assert outcome.record.attempts == 3

    run_virtual(main())


def test_a_plain_answer_cut_in_its_body_is_sent_again() -> None:
    """Nothing of it has reached the caller, as it is read whole first."""

    async def main() -> None:
        cut: list[Moment] = [ok(completion(), JSON)[:150], RESET]
        async with provider(in_turn(cut, PLAIN)) as server, bench(RETRYING, upstream=server) as b:
            outcome = await b.ask()
            assert (outcome.body, len(server.requests)) == (completion(), 2)
            assert outcome.taken.wasted_usd > 0

    run_virtual(main())


def test_a_streamed_array_is_not_held_back() -> None:
    """Gemini without alt=sse streams one JSON array: it must not be read whole."""

    async def main() -> None:
        head = STREAM_HEAD.replace(b"text/event-stream", b"application/json")
        script: list[Moment] = [head, chunk(b"[{}"), 1.0, chunk(b",{}]"), STREAM_END]
        async with provider(script) as server, bench(RETRYING, upstream=server) as b:
            answer, _, _ = await b.begin(stream=True)
            assert await answer.__anext__() == b"[{}"
            assert asyncio.get_running_loop().time() == pytest.approx(1000.0)
            assert await answer.whole() == b",{}]"

    run_virtual(main())


@pytest.mark.parametrize(
    "opening",
    [
        pytest.param([STREAM_HEAD, CLOSE], id="head"),
        pytest.param([STREAM_HEAD, STREAM_END], id="empty"),
        pytest.param([STREAM_HEAD, chunk(ROLE), RESET], id="role"),
        pytest.param([STREAM_HEAD, chunk(ROLE), STREAM_END], id="ended-cleanly"),
        pytest.param([STREAM_HEAD, chunk(ROLE[:20]), CLOSE], id="half-an-event"),
        pytest.param([STREAM_HEAD, chunk(ANTHROPIC_ERROR), STREAM_END], id="overloaded-inside"),
        pytest.param([STREAM_HEAD, chunk(b": keep-alive\n\n"), CLOSE], id="comment"),
    ],
)
def test_a_stream_cut_before_its_first_token_is_sent_again(opening: list[Moment]) -> None:
    """What only announces an answer is held back, so the caller sees one whole stream."""

    async def main() -> None:
        async with provider(in_turn(opening, STREAM)) as server, bench(RETRYING, upstream=server) as b:
            outcome = await b.ask(stream=True)
            assert outcome.body == b"".join(EVENTS)
            assert len(server.requests) == 2
            refused = chunk(ANTHROPIC_ERROR) in opening  # providers do not bill that
            assert (outcome.taken.wasted_usd > 0) is not refused

    run_virtual(main())


def test_a_stream_cut_after_its_first_token_is_not_sent_again() -> None:
    """The caller has seen a word: it gets what came, and sees that it is cut."""

    async def main() -> None:
        script: list[Moment] = [STREAM_HEAD, chunk(ROLE), chunk(delta("Hel")), 1.0, RESET]
        async with provider(in_turn(script, STREAM)) as server, bench(RETRYING, upstream=server) as b:
            answer, record, _ = await b.begin(stream=True)
            assert await answer.__anext__() == ROLE
            assert await answer.__anext__() == delta("Hel")
            with pytest.raises(UpstreamBroken):
                await answer.__anext__()
            assert record.error == "upstream_broken"
            assert len(server.requests) == 1

    run_virtual(main())


def test_connecting_is_tried_again_even_for_what_must_not_be_sent_twice() -> None:
    """Nobody listens at one place; not a byte was sent, so the other gets the call at once."""

    async def main() -> None:
        async with provider(PLAIN) as server:
            there = deployment("there", server)
            gone = msgspec.structs.replace(there, name="gone", url=DEAD_URL)
            policy = msgspec.structs.replace(RETRYING, deployments=[gone, there])
            async with bench(policy, rand=lambda: 0.0) as b:
                outcome = await b.ask(headers={"x-paceline-idempotent": "false"})
                assert (outcome.status, outcome.took_s) == (200, 0.0)
                assert str(outcome.taken.failed[0]) == "gone upstream_broken"
                assert outcome.taken.deployment == "there"

    run_virtual(main())


@pytest.mark.parametrize(
    ("play", "headers", "fields"),
    [
        pytest.param([RESET], {"x-paceline-idempotent": "false"}, {}, id="cut"),
        pytest.param(refuses(500), {"x-paceline-idempotent": "false"}, {}, id="failed"),
        pytest.param(refuses(500), {}, {"background": True}, id="stateful"),
        pytest.param(refuses(500, b"x-should-retry: false"), {}, {}, id="told-not-to"),
        pytest.param(refuses(429, code="insufficient_quota"), {}, {}, id="no-quota"),
        pytest.param(refuses(400), {}, {}, id="our-fault"),
        pytest.param(refuses(401), {}, {}, id="callers-own-key"),
    ],
)
def test_some_failures_are_the_callers_to_see(play: list[Moment], headers: dict[str, str], fields: Any) -> None:
    """One attempt, and the provider's own words."""

    async def main() -> None:
        async with provider(play) as server, bench(RETRYING, upstream=server) as b:
            if RESET in play:
                with pytest.raises(UpstreamBroken):
                    await b.ask(headers=headers, **fields)
            else:
                assert (await b.ask(headers=headers, **fields)).status in (400, 401, 429, 500)
            assert len(server.requests) == 1

    run_virtual(main())


def test_attempts_end_and_the_last_answer_is_the_callers() -> None:
    """Four attempts, then the provider's refusal as it came."""

    async def main() -> None:
        async with provider(refuses(503, message="down")) as server, bench(RETRYING, upstream=server) as b:
            outcome = await b.ask()
            assert (outcome.status, len(server.requests)) == (503, 4)
            assert b"down" in outcome.body
            assert outcome.taken.story() == ", ".join(["openai 503"] * 4)

    run_virtual(main())


def test_a_stream_that_begins_with_an_error_keeps_its_words() -> None:
    """When no attempt is left the caller gets the stream with the error in it, ended."""

    async def main() -> None:
        script: list[Moment] = [STREAM_HEAD, chunk(ANTHROPIC_ERROR), STALL]
        async with provider(script) as server, bench(backing_off(attempts=2), upstream=server) as b:
            outcome = await b.ask(stream=True)
            assert (outcome.status, outcome.body, len(server.requests)) == (200, ANTHROPIC_ERROR, 2)
            assert outcome.record.info.complete is False

    run_virtual(main())


@pytest.mark.parametrize(
    ("headers", "limit_s"),
    [
        pytest.param({"x-paceline-timeout-s": "3"}, 3.0, id="ours"),
        pytest.param({"x-stainless-read-timeout": "2.5"}, 2.5, id="sdk"),
        pytest.param({"x-paceline-timeout-s": "30", "x-stainless-read-timeout": "1"}, 30.0, id="ours-first"),
        pytest.param({"x-stainless-read-timeout": "NOT_GIVEN", "x-stainless-timeout": "4"}, 4.0, id="nonsense"),
        pytest.param({}, 60.0, id="policy"),
    ],
)
@pytest.mark.parametrize(
    "play",
    [
        pytest.param([STALL], id="silent"),
        pytest.param([ok(completion())[:150], STALL], id="stalls-in-the-body"),
        pytest.param([0.3, CLOSE], id="breaks"),
        pytest.param([STREAM_HEAD, chunk(ROLE), STALL], id="no-first-token"),
    ],
)
def test_the_deadline_holds_whatever_fails(play: list[Moment], headers: dict[str, str], limit_s: float) -> None:
    """Retries and waits together take no longer than the caller waits."""
    policy = msgspec.structs.replace(backing_off(attempts=1000, budget_burst=1000, max_backoff_s=1), timeout_s=60.0)

    async def main() -> None:
        async with provider(play) as server, bench(policy, upstream=server) as b:
            start_s = asyncio.get_running_loop().time()
            with pytest.raises(UpstreamError) as caught:
                await b.ask(stream=STREAM_HEAD in play, headers=headers)
            took_s = asyncio.get_running_loop().time() - start_s
            assert took_s <= limit_s + 1e-6
            if STALL in play:
                assert took_s == pytest.approx(limit_s)
                assert isinstance(caught.value, UpstreamTimeout)
                assert (caught.value.phase, caught.value.limit_s) == ("total", limit_s)

    run_virtual(main())


def test_a_long_deadline_costs_no_timer_and_still_bounds_the_waits() -> None:
    """The SDK's 600 s: the client's own limits stop an attempt, and no retry begins that could not end."""
    timeouts = Timeouts(connect_s=1.0, first_byte_s=5.0, silence_s=1.0)

    async def main() -> None:
        async with provider([STALL]) as server, bench(RETRYING, upstream=server, timeouts=timeouts) as b:
            start_s = asyncio.get_running_loop().time()
            with pytest.raises(UpstreamTimeout):
                await b.ask(headers={"x-stainless-read-timeout": "12"})
            assert asyncio.get_running_loop().time() - start_s <= 12.0 + 1e-6
            assert len(server.requests) == 3

    run_virtual(main())


def test_a_refused_call_waits_as_long_as_it_is_told() -> None:
    """Without limits a 429 makes its own call wait: Retry-After and at most a tenth more."""

    async def main() -> None:
        play = in_turn(refuses(429, b"retry-after: 3"), refuses(429, b"retry-after-ms: 1500"), PLAIN)
        async with provider(play) as server, bench(RETRYING, upstream=server, rand=half) as b:
            outcome = await b.ask()
            assert outcome.took_s == pytest.approx((3 + 1.5) * 1.05, abs=0.01)
            assert outcome.record.queued
            assert outcome.record.retry_after_s == 1.5

    run_virtual(main())


def test_too_long_a_wait_is_the_callers_to_see() -> None:
    """The 429 passes, with the Retry-After the caller can act on."""

    async def main() -> None:
        async with provider(refuses(429, b"retry-after: 61")) as server, bench(RETRYING, upstream=server) as b:
            outcome = await b.ask()
            assert (outcome.status, outcome.took_s, len(server.requests)) == (429, 0.0, 1)
            assert (b"retry-after", b"61") in outcome.answer.headers

    run_virtual(main())


def test_a_storm_of_429_ends() -> None:
    """A provider that says "at once" for ever gets twenty tries, not a busy loop."""

    async def main() -> None:
        async with provider(refuses(429, b"retry-after: 0")) as server, bench(RETRYING, upstream=server) as b:
            assert (await b.ask()).status == 429
            assert len(server.requests) == 20

    run_virtual(main())


def test_a_429_sends_the_call_elsewhere_at_once() -> None:
    """Another deployment has quota of its own."""

    async def main() -> None:
        async with provider(refuses(429, b"retry-after: 20")) as busy, provider(PLAIN) as free:
            policy = msgspec.structs.replace(RETRYING, deployments=[deployment("busy", busy), deployment("free", free)])
            async with bench(policy, rand=lambda: 0.0) as b:
                for _ in range(5):
                    outcome = await b.ask()
                    assert (outcome.status, outcome.took_s) == (200, 0.0)
                assert len(busy.requests) == 1  # held: nobody goes there until its 20 s are over

    run_virtual(main())


@pytest.mark.slow
def test_one_of_two_dead_costs_a_few_failures_then_nothing() -> None:
    """The breaker opens after ten calls in its window, probes after 5 s, and the dead one comes back."""

    async def main() -> None:
        alive = [False]
        async with (
            provider(lambda number, request: PLAIN if alive[0] else [RESET]) as east,
            provider(PLAIN) as west,
        ):
            policy = msgspec.structs.replace(
                RETRYING,
                deployments=[deployment("east", east), deployment("west", west)],
                breaker=BreakerPolicy(min_calls=5),
                latency_decay_s=0.001,  # so that balancing alone does not avoid it
            )
            async with bench(policy) as b:
                for _ in range(100):
                    outcome = await b.ask()
                    assert outcome.status == 200
                    await asyncio.sleep(0.02)
                assert len(east.requests) == 5
                await asyncio.sleep(5.0)
                for _ in range(20):
                    assert (await b.ask()).status == 200
                    await asyncio.sleep(0.02)
                assert len(east.requests) == 6  # one probe, which failed
                alive[0] = True
                await asyncio.sleep(10.0)
                for _ in range(100):
                    assert (await b.ask()).status == 200
                    await asyncio.sleep(0.02)
                assert len(east.requests) > 30

    run_virtual(main())


def test_the_only_deployment_is_never_refused() -> None:
    """Its breaker is open, but there is nowhere else: every call is tried."""

    async def main() -> None:
        async with provider(refuses(500)) as server:
            policy = RoutingPolicy(deployments=[deployment("only", server)], breaker=BreakerPolicy(min_calls=2))
            async with bench(policy) as b:
                for _ in range(10):
                    assert (await b.ask()).status == 500
            assert len(server.requests) == 10
            refusing = msgspec.structs.replace(policy, breaker=BreakerPolicy(min_calls=2, refuse=True))
            async with bench(refusing) as b:
                for _ in range(2):
                    assert (await b.ask()).status == 500
                with pytest.raises(UpstreamBroken, match="only was not called"):
                    await b.ask()
            assert len(server.requests) == 12

    run_virtual(main())


FALLING = RoutingPolicy(fallbacks={MODEL: ["gpt-4.1"]})


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param([RESET], id="reset"),
        pytest.param(refuses(500), id="500"),
        pytest.param(refuses(429, b"retry-after: 100"), id="429"),
        pytest.param(refuses(429, code="insufficient_quota"), id="no-quota"),
        pytest.param(refuses(503, b"x-should-retry: false"), id="told-not-to"),
        pytest.param([STREAM_HEAD, chunk(ROLE), RESET], id="stream-cut"),
        pytest.param([STREAM_HEAD, chunk(ANTHROPIC_ERROR)], id="error-in-stream"),
    ],
)
def test_another_model_answers_when_the_first_fails(broken: list[Moment]) -> None:
    """Also without retries; its name is in the body that is sent, and everything else of the body as it was."""

    async def main() -> None:
        stream = STREAM_HEAD in broken

        def play(number: int, request: bytes) -> list[Moment]:
            return (STREAM if stream else PLAIN) if b'"gpt-4.1"' in request else broken

        async with provider(play) as server, bench(FALLING, upstream=server) as b:
            outcome = await b.ask(stream=stream)
            assert outcome.status == 200
            assert (outcome.taken.fallback, outcome.taken.model) == ("gpt-4.1", "gpt-4.1")
            first, second = (request.partition(b"\r\n\r\n")[2] for request in server.requests)
            assert second == first.replace(MODEL.encode(), b"gpt-4.1")

    run_virtual(main())


def test_a_prompt_too_long_goes_to_a_longer_model_if_asked_for() -> None:
    """By OpenAI's code; without the option the 400 is the caller's."""

    async def main() -> None:
        def play(number: int, request: bytes) -> list[Moment]:
            return PLAIN if b'"gpt-4.1"' in request else refuses(400, code="context_length_exceeded")

        async with provider(play) as server:
            async with bench(FALLING, upstream=server) as b:
                assert (await b.ask()).status == 400
            longer = msgspec.structs.replace(FALLING, fallback_on_context_length=True)
            async with bench(longer, upstream=server) as b:
                assert (await b.ask()).status == 200

    run_virtual(main())


def test_an_open_breaker_sends_straight_to_the_fallback() -> None:
    """After ten failures the first model is left alone, but for its probes."""

    async def main() -> None:
        def play(number: int, request: bytes) -> list[Moment]:
            return PLAIN if b'"gpt-4.1"' in request else refuses(500)

        async with provider(play) as server, bench(FALLING, upstream=server) as b:
            for _ in range(40):
                assert (await b.ask()).status == 200
            asked_first = [request for request in server.requests if MODEL.encode() in request]
            assert len(asked_first) == 10

    run_virtual(main())


def test_a_wrong_key_of_one_deployment_is_not_the_callers_trouble() -> None:
    """401 with the deployment's own credential: the other serves, and the breaker learns."""

    async def main() -> None:
        async with provider(refuses(401)) as east, provider(PLAIN) as west:
            policy = msgspec.structs.replace(
                RETRYING,
                deployments=[deployment("east", east, key_env="EAST"), deployment("west", west, key_env="WEST")],
            )
            async with bench(policy, environ={"EAST": "k-east", "WEST": "k-west"}, rand=lambda: 0.0) as b:
                outcome = await b.ask()
                assert (outcome.status, outcome.taken.story()) == (200, "east 401")
            assert b"authorization: Bearer k-east\r\n" in east.requests[0]
            assert b"authorization: Bearer k-west\r\n" in west.requests[0]
            assert b"sk-1" not in east.requests[0] + west.requests[0]

    run_virtual(main())


@pytest.mark.parametrize(
    "script", [[STALL], [STREAM_HEAD, chunk(ROLE), STALL], refuses(503)], ids=["head", "token", "pause"]
)
def test_a_caller_that_leaves_lets_everything_go(script: list[Moment]) -> None:
    """Cancelled while waiting for the head, for the first token, between two attempts."""

    async def main() -> None:
        async with (
            provider(script) as server,
            bench(backing_off(first_backoff_s=100, max_backoff_s=100), upstream=server, rand=half) as b,
        ):
            asking = asyncio.create_task(b.ask(stream=True))
            await asyncio.sleep(1.0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await asyncio.sleep(0.1)
            assert server.open == b.clients.idle

    run_virtual(main())


def test_the_error_says_what_was_tried() -> None:
    """Provider, attempts, what happened to each; and the SDK is told not to multiply them."""

    async def main() -> RouteTaken:
        async with (
            provider(in_turn(refuses(503), [RESET])) as server,
            bench(backing_off(attempts=2), upstream=server) as b,
        ):
            with pytest.raises(UpstreamBroken) as caught:
                await b.ask()
            taken = b.records[0].taken
            assert taken is not None
            reply = error_reply(caught.value, b"bypass", taken=taken)
            assert reply.status == 502
            assert isinstance(reply.body, bytes)
            message = msgspec.json.decode(reply.body)["error"]["message"]
            assert message.startswith(f"the model server failed: {server.url}")
            assert message.endswith("; 2 attempts: openai 503, openai upstream_broken")
            assert (b"x-should-retry", b"false") in reply.headers
            return taken

    run_virtual(main())


def test_what_is_no_model_call_passes_once() -> None:
    """Files, models, anything: no retry, and the record is finished."""

    async def main() -> None:
        async with provider(refuses(503)) as server, bench(RETRYING, upstream=server) as b:
            outcome = await b.ask(path="/v1/files?purpose=x")
            assert (outcome.status, len(server.requests)) == (503, 1)
            assert server.requests[0].startswith(b"POST /v1/files?purpose=x HTTP/1.1\r\n")

    run_virtual(main())


def test_a_slow_answer_is_served_whole() -> None:
    """Ten seconds later, no deadline: nothing is given up."""

    async def main() -> None:
        async with provider(says("late", after_s=10.0)) as server, bench(RETRYING, upstream=server) as b:
            outcome = await b.ask()
            assert outcome.text == "late"
            assert outcome.took_s == pytest.approx(10.0)

    run_virtual(main())
