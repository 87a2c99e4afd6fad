"""Networks that misbehave: after every one of them nothing is held, and the next call succeeds."""

import asyncio
import contextlib

import msgspec
import pytest
from tests.gateway.builders import CACHING, COMPLETION, EVENTS, JSON, PLAIN, SHARING, STREAM, Bench, bench
from tests.wire.builders import CLOSE, RESET, STALL, STREAM_HEAD, Step, answer, chunk, ok, raw, run, until

from paceline.accelerate.limits import AdaptivePolicy, LimitsPolicy
from paceline.accelerate.policy import Policy
from paceline.accelerate.routing.policy import RetryPolicy, RoutingPolicy
from paceline.errors import UpstreamBroken
from paceline.wire.client import Timeouts

QUICK = Timeouts(connect_s=2.0, first_byte_s=0.04, silence_s=0.04)
LIMITED = Policy(limits=LimitsPolicy(concurrency=1))
RETRYING = Policy(
    limits=LimitsPolicy(concurrency=1, adaptive=AdaptivePolicy(enabled=True)),
    routing=RoutingPolicy(retries=RetryPolicy(enabled=True)),
)
POLICIES = [
    pytest.param(Policy(), id="pass"),
    pytest.param(CACHING, id="cache"),
    pytest.param(SHARING, id="single-flight"),
    pytest.param(LIMITED, id="limited"),
]


# Over a kept connection a call is sent at once and needs no task while it goes well: another way through the layer.
both_ways = pytest.mark.parametrize("kept", [0, 1], ids=["opened", "kept"])


async def check_next_call(b: Bench) -> None:
    """The gateway has let everything go and works."""
    b.forward.timeouts = Timeouts()
    await b.settled()
    assert (await b.say("next"))[0] == 200
    await b.settled()
    assert len(b.spans) >= 2


@both_ways
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    ("script", "status", "error"),
    [
        pytest.param([CLOSE], 502, "upstream_broken", id="no-answer"),
        pytest.param([RESET], 502, "upstream_broken", id="reset"),
        pytest.param([b"garbage\r\n\r\n"], 502, "upstream_broken", id="garbage"),
        pytest.param([ok(COMPLETION, JSON)[:120], RESET], 502, "upstream_broken", id="reset-mid-body"),
        pytest.param(
            [STREAM_HEAD.replace(b"text/event-stream", b"a/b") + b"ff\r\nab", CLOSE],
            502,
            "upstream_broken",
            id="half-a-chunk",
        ),
        pytest.param(
            [ok(COMPLETION, JSON).replace(b"content-length: ", b"content-length: 9", 1), CLOSE],
            502,
            "upstream_broken",
            id="promises-more",
        ),
        pytest.param([STALL], 504, "upstream_timeout", id="silence"),
        pytest.param([ok(COMPLETION, JSON)[:120], STALL], 504, "upstream_timeout", id="stall-mid-body"),
    ],
)
def test_a_broken_plain_answer_is_a_clear_error(
    policy: Policy, script: list[Step], status: int, error: str, kept: int
) -> None:
    """502 or 504, worded as the provider would, whatever broke and wherever."""

    async def main() -> None:
        # A kept connection that ends without a byte is replaced once, so that it has to end twice.
        scripts = [script, script, PLAIN] if kept and script in ([CLOSE], [RESET]) else [script, PLAIN]
        timeouts = QUICK if STALL in script else None
        async with bench(scripts=scripts, policy=policy, timeouts=timeouts, kept=kept) as b:
            answered, _, body = await b.say()
            assert answered == status
            assert msgspec.json.decode(body)["error"]["message"].startswith("the model server failed: http://127.0.0.1")
            assert [span.error for span in b.spans] == [error]
            assert b.spans[0].status == "error"
            await check_next_call(b)

    run(main())


@both_ways
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(
    "ending",
    [
        pytest.param([CLOSE], id="close"),
        pytest.param([RESET], id="reset"),
        pytest.param([b"5\r\nda", CLOSE], id="half-a-chunk"),
        pytest.param([b"not a chunk\r\n"], id="garbage"),
        pytest.param([STALL], id="silence"),
    ],
)
def test_a_broken_stream_is_cut_not_ended(policy: Policy, ending: list[Step], kept: int) -> None:
    """The client gets what came, and then sees that it is incomplete."""

    async def main() -> None:
        script = [STREAM_HEAD, chunk(EVENTS[0]), *ending]
        timeouts = QUICK if STALL in script else None
        async with bench(scripts=[script, PLAIN], policy=policy, timeouts=timeouts, kept=kept) as b:
            reply = await b.ask(stream=True)
            assert await reply.__anext__() == EVENTS[0]
            with pytest.raises(UpstreamBroken):
                await reply.read()
            await until(lambda: b.spans)
            assert (b.spans[0].error or "").startswith("upstream_")
            assert b.spans[0].attributes["paceline.tokens_estimated"] is True
            await check_next_call(b)

    run(main())


@both_ways
@pytest.mark.parametrize("policy", POLICIES)
def test_a_slow_drip_is_served(policy: Policy, kept: int) -> None:
    """An answer that comes byte by byte is slow, not broken."""
    data = ok(COMPLETION, JSON)

    async def main() -> None:
        async with bench(*(data[i : i + 9] for i in range(0, len(data), 9)), policy=policy, kept=kept) as b:
            assert (await b.say())[0::2] == (200, COMPLETION)
            await check_next_call(b)

    run(main())


@both_ways
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [[STALL], [STREAM_HEAD, chunk(EVENTS[0]), STALL]], ids=["waiting", "streaming"])
def test_client_gone_lets_the_provider_go(policy: Policy, stream: bool, script: list[Step], kept: int) -> None:
    """When the only client leaves, before or in the middle of the answer, the call to the provider is ended."""

    async def main() -> None:
        async with bench(scripts=[script, PLAIN], policy=policy, kept=kept) as b:
            asking = asyncio.create_task(b.say(stream=stream))
            await until(lambda: b.upstream.requests)
            await asyncio.sleep(0.005)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await b.settled()
            assert b.upstream.open == 0
            assert [span.error for span in b.spans] == ["client_closed"]
            await check_next_call(b)

    run(main())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_large_answer_is_read_on_though_nobody_takes_it_yet(policy: Policy) -> None:
    """More than a connection buffers, in pieces, over a kept connection: it is read to its end all the same."""
    padding = b" " * 1_500_000
    data = ok(COMPLETION + padding, JSON)

    async def main() -> None:
        async with bench(*(data[i : i + 50_000] for i in range(0, len(data), 50_000)), policy=policy, kept=1) as b:
            assert (await b.say())[0::2] == (200, COMPLETION + padding)
            await check_next_call(b)

    run(main())


def test_a_caller_that_joined_gets_the_answer_of_one_that_left() -> None:
    """Sent at once for the first, who leaves; followed by the second."""

    async def main() -> None:
        gate = asyncio.Event()
        async with bench(gate, *PLAIN, policy=SHARING, kept=1) as b:
            first = asyncio.create_task(b.say())
            await until(lambda: b.upstream.requests)
            second = asyncio.create_task(b.say())
            await until(lambda: b.server.busy == 2)
            first.cancel()
            await until(lambda: b.server.busy == 1)
            gate.set()
            assert await second == (200, "join", COMPLETION)
            assert await b.say() == (200, "hit", COMPLETION)
            assert len(b.upstream.requests) == 1
            await b.settled()

    run(main())


def test_client_gone_in_the_queue_frees_its_place() -> None:
    """A caller that leaves while waiting for a turn is passed over."""

    async def main() -> None:
        gate = asyncio.Event()
        async with bench(gate, *PLAIN, policy=LIMITED) as b:
            asking = [asyncio.create_task(b.say(f"question {i}")) for i in range(3)]
            await until(lambda: b.engine.state()["waiting"] == 2)
            asking[1].cancel()
            await until(lambda: b.engine.state()["waiting"] == 1)
            gate.set()
            outcomes = await asyncio.gather(*asking, return_exceptions=True)
            assert [isinstance(o, BaseException) for o in outcomes] == [False, True, False]
            assert len(b.upstream.requests) == 2
            await b.settled()

    run(main())


def test_a_full_queue_is_refused_in_the_providers_words() -> None:
    """429 with retry-after, so that SDKs back off by themselves."""
    policy = Policy(limits=LimitsPolicy(concurrency=1, max_queue=1))

    async def main() -> None:
        gate = asyncio.Event()
        async with bench(gate, *PLAIN, policy=policy) as b:
            asking = [asyncio.create_task(b.say(f"question {i}")) for i in range(2)]
            await until(lambda: b.engine.state()["waiting"] == 1)
            reply = await b.ask("one too many")
            assert (reply.status, reply.header(b"retry-after")) == (429, b"1")
            assert msgspec.json.decode(await reply.read())["error"]["code"] == "gateway_overloaded"
            gate.set()
            assert [status for status, _, _ in await asyncio.gather(*asking)] == [200, 200]
            assert [span.cost_usd for span in b.spans if span.error == "429"] == [0.0]

    run(main())


def test_a_provider_that_is_not_there_is_named() -> None:
    """Connection refused becomes a 502 that says where the gateway tried."""

    async def main() -> None:
        async with bench(*PLAIN) as b:
            await b.forward.close()
            b.forward._port = 1
            status, _, body = await b.say()
            assert status == 502
            assert "cannot be reached" in msgspec.json.decode(body)["error"]["message"]

    run(main())


@pytest.mark.parametrize(
    "data",
    [
        (
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"
            b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
        ),
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 50\r\n\r\nhello",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nx-a: b\r\n transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n",
    ],
    ids=["both-lengths", "two-lengths", "space-before-colon", "folded", "nul"],
)
def test_smuggled_requests_never_reach_the_provider(data: bytes) -> None:
    """A request two parsers could read differently is refused whole."""

    async def main() -> None:
        async with bench(*PLAIN) as b:
            refusal = await raw(b.server.port, data)
            assert refusal.startswith(b"HTTP/1.1 400 ")
            assert refusal.count(b"\r\n\r\n") == 1
            assert b.upstream.requests == []

    run(main())


def test_a_429_is_absorbed_in_order() -> None:
    """The provider's wait is waited for, the caller sees only the answer, and the span tells what it cost."""
    refusal = answer(429, b'{"error": {"code": "rate_limit_exceeded"}}', b"retry-after-ms: 20")

    async def main() -> None:
        async with bench(scripts=[[refusal], [refusal], PLAIN], policy=RETRYING) as b:
            answers = await asyncio.gather(*(b.say(f"question {i}") for i in range(3)))
            assert [status for status, _, _ in answers] == [200] * 3
            order = [request.split(b"question ")[1][:1] for request in b.upstream.requests]
            assert order[:3] == [order[0]] * 3
            first = b.spans[0]
            assert first.attributes["http.request.resend_count"] == 2
            assert first.attributes["paceline.retry_after_s"] == 0.02
            assert first.resource == "provider:gpt-4o-mini"
            assert first.wait_ns >= 40_000_000
            assert first.duration_ns >= first.wait_ns
            await b.settled()

    run(main())


@pytest.mark.parametrize(
    "refusal",
    [
        answer(429, b'{"error": {"code": "insufficient_quota"}}', b"retry-after: 0"),
        answer(429, b"{}", b"retry-after: 0", b"x-should-retry: false"),
        answer(429, b"{}", b"retry-after: 3600"),
    ],
    ids=["no-quota", "told-not-to", "too-long"],
)
def test_a_429_that_waiting_cannot_help_passes(refusal: bytes) -> None:
    """The caller sees the provider's own refusal, once."""

    async def main() -> None:
        async with bench(refusal, policy=RETRYING) as b:
            status, _, body = await b.say()
            assert (status, body) == (429, refusal.split(b"\r\n\r\n")[1])
            assert len(b.upstream.requests) == 1
            await b.settled()

    run(main())


def test_concurrency_is_held_while_a_stream_lasts() -> None:
    """A streaming call keeps its slot until its last byte, or until its client leaves."""

    async def main() -> None:
        gate = asyncio.Event()
        first: list[Step] = [STREAM_HEAD, chunk(EVENTS[0]), gate, *STREAM[2:]]
        async with bench(scripts=[first, PLAIN], policy=RETRYING) as b:
            stream = await b.ask("one", stream=True)
            await stream.__anext__()
            second = asyncio.create_task(b.say("two"))
            await until(lambda: b.engine.state()["waiting"] == 1)
            assert len(b.upstream.requests) == 1
            gate.set()
            await stream.read()
            assert (await second)[0] == 200
            with contextlib.suppress(StopIteration):
                waited = next(span for span in b.spans if span.wait_ns)
                assert waited.resource == "provider:gpt-4o-mini"
            await b.settled()

    run(main())
