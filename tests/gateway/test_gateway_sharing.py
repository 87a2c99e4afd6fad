"""Cache and single-flight through real sockets: who gets whose answer, and what is never kept."""

import asyncio

import msgspec
import pytest
from tests.gateway.builders import (
    CACHING,
    CHAT,
    COMPLETION,
    COST_USD,
    DONE,
    EVENTS,
    JSON,
    PLAIN,
    SHARING,
    STREAM,
    bench,
    delta,
)
from tests.wire.builders import CLOSE, STALL, STREAM_END, STREAM_HEAD, Step, answer, chunk, ok, raw, run, until

from paceline.accelerate.cache import CachePolicy
from paceline.accelerate.policy import Policy
from paceline.wire.client import ClientReply, encode_request
from paceline.wire.sse import encode

OTHER = COMPLETION.replace(b"Hello there", b"Good bye")


def test_a_repeated_call_is_a_hit() -> None:
    """The second one never reaches the provider, costs nothing and says what it saved."""

    async def main() -> None:
        async with bench(ok(COMPLETION, JSON, b"x-request-id: r1", b"set-cookie: a=b"), policy=CACHING) as b:
            assert await b.say() == (200, "miss", COMPLETION)
            reply = await b.ask()
            assert (reply.header(b"x-paceline-cache"), await reply.read()) == (b"hit", COMPLETION)
            assert reply.header(b"content-type") == b"application/json"
            assert reply.header(b"set-cookie") is None
            assert len(b.upstream.requests) == 1
            miss, hit = b.spans
            assert miss.cache == "miss"
            assert miss.cost_usd == pytest.approx(COST_USD)
            assert (hit.cache, hit.cost_usd, hit.input_tokens) == ("hit", 0.0, None)
            assert hit.attributes["paceline.saved_usd"] == pytest.approx(COST_USD)
            await b.settled()

    run(main())


def test_a_stream_is_replayed_event_by_event() -> None:
    """A hit on a stream is a stream again, each event a piece of its own; the plain call is another entry."""

    async def main() -> None:
        async with bench(scripts=[STREAM, PLAIN], policy=CACHING) as b:
            assert (await b.say(stream=True))[1:] == ("miss", b"".join(EVENTS))
            call = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}], "stream": True}
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            request = encode_request("POST", CHAT, "a", headers, msgspec.json.encode(call))
            head, _, body = (await raw(b.server.port, request)).partition(b"\r\n\r\n")
            assert b"\r\nx-paceline-cache: hit\r\n" in head
            assert b"\r\ncontent-type: text/event-stream\r\n" in head
            assert body == b"".join([chunk(event) for event in EVENTS]) + STREAM_END
            assert (await b.say())[1] == "miss"
            assert (await b.say())[1:] == ("hit", COMPLETION)

    run(main())


def test_tenants_do_not_share() -> None:
    """Another key is another cache."""

    async def main() -> None:
        async with bench(*PLAIN, policy=SHARING) as b:
            for key in (b"Bearer a", b"Bearer b", b"Bearer a"):
                await b.say(headers=((b"authorization", key),))
            assert [span.cache for span in b.spans] == ["miss", "miss", "hit"]

    run(main())


def test_text_keys_share_what_is_typed_differently() -> None:
    """With key = "text", case and punctuation do not matter."""
    policy = Policy(cache=CachePolicy(enabled=True, key="text"))

    async def main() -> None:
        async with bench(*PLAIN, policy=policy) as b:
            outcomes = [(await b.say(text))[1] for text in ("Where is it?", "where is  it", "where was it")]
            assert outcomes == ["miss", "hit", "miss"]

    run(main())


REFUSAL = msgspec.json.encode({"choices": [{"message": {"content": None, "refusal": "I can't"}}]})


@pytest.mark.parametrize(
    "script",
    [
        pytest.param([answer(500, b"{}", JSON)], id="error"),
        pytest.param([answer(429, b"{}", JSON)], id="rate-limited"),
        pytest.param([ok(b'{"error": {"message": "x"}}', JSON)], id="error-with-200"),
        pytest.param([ok(b"not json", JSON)], id="unreadable"),
        pytest.param([ok(REFUSAL, JSON)], id="refused"),
        pytest.param([STREAM_HEAD, chunk(EVENTS[0]), STREAM_END], id="stream-without-its-end"),
        pytest.param([STREAM_HEAD, chunk(EVENTS[0]), CLOSE], id="cut-stream"),
        pytest.param([STREAM_HEAD, chunk(encode(b'{"error": {}}') + DONE), CLOSE], id="stream-with-an-error"),
        pytest.param([ok(COMPLETION[:50], JSON), CLOSE], id="half-a-body"),
    ],
)
def test_failures_are_never_kept(script: list[Step]) -> None:
    """Errors, refusals and whatever is not whole are asked for again."""

    async def main() -> None:
        async with bench(scripts=[script, PLAIN], policy=SHARING) as b:
            reply = await b.ask()
            try:
                await reply.read()
            except Exception:  # noqa: BLE001 - some of these are cut on purpose
                assert reply.done
            assert (await b.say())[:2] == (200, "miss")
            assert len(b.upstream.requests) == 2
            assert b.engine.state()["cache_entries"] == 1
            await b.settled()

    run(main())


@pytest.mark.parametrize(
    "header",
    [(b"cache-control", b"no-cache"), (b"cache-control", b"max-age=0, No-Cache"), (b"x-paceline-cache", b"refresh")],
)
def test_a_caller_who_wants_it_fresh_gets_it_fresh(header: tuple[bytes, bytes]) -> None:
    """Asked anew, and what came is kept for the next."""

    async def main() -> None:
        async with bench(scripts=[[ok(COMPLETION, JSON)], [ok(OTHER, JSON)]], policy=SHARING) as b:
            await b.say()
            assert await b.say(headers=(header,)) == (200, "miss", OTHER)
            assert await b.say() == (200, "hit", OTHER)
            assert len(b.upstream.requests) == 2

    run(main())


@pytest.mark.parametrize("header", [(b"cache-control", b"no-store"), (b"x-paceline-cache", b"bypass")])
def test_a_caller_who_wants_nothing_kept_shares_nothing(header: tuple[bytes, bytes]) -> None:
    """Neither looked up nor kept."""

    async def main() -> None:
        async with bench(scripts=[[ok(COMPLETION, JSON)], [ok(OTHER, JSON)]], policy=SHARING) as b:
            await b.say()
            assert await b.say(headers=(header,)) == (200, "bypass", OTHER)
            assert await b.say() == (200, "hit", COMPLETION)

    run(main())


def test_equal_calls_in_flight_share_one() -> None:
    """Twenty at once: one call to the provider, the same answer for all, nineteen joins that cost nothing."""

    async def main() -> None:
        gate = asyncio.Event()
        async with bench(gate, *PLAIN, policy=Policy(single_flight=True)) as b:
            asking = [asyncio.create_task(b.say()) for _ in range(20)]
            await until(lambda: b.server.busy == 20)
            gate.set()
            answers = await asyncio.gather(*asking)
            assert {(status, body) for status, _, body in answers} == {(200, COMPLETION)}
            assert sorted(outcome for _, outcome, _ in answers) == ["join"] * 19 + ["miss"]
            assert len(b.upstream.requests) == 1
            assert sum(span.cost_usd or 0.0 for span in b.spans) == pytest.approx(COST_USD)
            joined = [span for span in b.spans if span.cache == "join"]
            assert len(joined) == 19
            assert all(span.attributes["paceline.saved_usd"] == pytest.approx(COST_USD) for span in joined)
            await b.settled()

    run(main())


async def beginning(reply: ClientReply, size_bytes: int) -> bytes:
    """What comes first, in whatever pieces, until it is as long as that."""
    found = b""
    while len(found) < size_bytes:
        found += await reply.__anext__()
    return found


def test_a_late_joiner_of_a_stream_gets_all_of_it() -> None:
    """Joining in the middle: first what has come, then the rest as it comes."""

    async def main() -> None:
        gate = asyncio.Event()
        script: list[Step] = [
            STREAM_HEAD,
            chunk(EVENTS[0]),
            chunk(EVENTS[1]),
            gate,
            chunk(EVENTS[2]),
            chunk(EVENTS[3]),
            STREAM_END,
        ]
        async with bench(*script, policy=SHARING) as b:
            first = await b.ask(stream=True)
            so_far = b"".join(EVENTS[:2])
            assert await beginning(first, len(so_far)) == so_far
            late = await b.ask(stream=True)
            assert late.header(b"x-paceline-cache") == b"join"
            assert await beginning(late, len(so_far)) == so_far
            gate.set()
            assert await first.read() == await late.read() == b"".join(EVENTS[2:])
            assert (await b.say(stream=True))[1] == "hit"
            await b.settled()

    run(main())


def test_the_first_client_leaving_does_not_cut_the_others() -> None:
    """Whoever started the call may go; who joined gets the whole stream, and it is kept."""

    async def main() -> None:
        gate = asyncio.Event()
        async with bench(STREAM_HEAD, chunk(EVENTS[0]), gate, *map(chunk, EVENTS[1:]), STREAM_END, policy=SHARING) as b:
            first = await b.ask(stream=True)
            await first.__anext__()
            second = await b.ask(stream=True)
            first.close()
            await until(lambda: b.server.busy == 1)
            gate.set()
            assert await second.read() == b"".join(EVENTS)
            assert (await b.say(stream=True))[1] == "hit"
            await b.settled()

    run(main())


def test_when_the_last_client_leaves_the_provider_is_let_go() -> None:
    """Nobody waits any more: the connection to the provider is closed, the span says why."""

    async def main() -> None:
        async with bench(STREAM_HEAD, chunk(EVENTS[0]), "stall", policy=SHARING) as b:
            replies = [await b.ask(stream=True), await b.ask(stream=True)]
            for reply in replies:
                await reply.__anext__()
                reply.close()
            await b.settled()
            assert {span.error for span in b.spans} == {"client_closed"}
            assert b.upstream.open == 0

    run(main())


def test_joined_calls_fail_together() -> None:
    """When the shared call fails, every caller gets the same 502, and the next call starts anew."""

    async def main() -> None:
        gate = asyncio.Event()
        async with bench(scripts=[[gate, CLOSE], PLAIN], policy=SHARING) as b:
            asking = [asyncio.create_task(b.say()) for _ in range(5)]
            await until(lambda: b.server.busy == 5)
            gate.set()
            assert [status for status, _, _ in await asyncio.gather(*asking)] == [502] * 5
            assert await b.say() == (200, "miss", COMPLETION)
            await b.settled()

    run(main())


def test_a_call_that_is_no_json_object_passes_unshared() -> None:
    """Without something to compare there is no key."""

    async def main() -> None:
        async with bench(answer(400, b"{}"), policy=SHARING) as b:
            for _ in range(2):
                reply = await b.client.request("POST", "/v1/chat/completions", [], b"[not, json")
                assert (reply.status, reply.header(b"x-paceline-cache")) == (400, b"bypass")
                await reply.read()
            assert b.upstream.requests[0].endswith(b"[not, json")

    run(main())


def test_a_stream_with_usage_knows_its_cost() -> None:
    """The final usage chunk is believed, and a hit saves exactly that."""
    usage = {"usage": {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}}
    script = [STREAM_HEAD, chunk(delta("Hi")), chunk(delta("", **usage)), chunk(DONE), STREAM_END]

    async def main() -> None:
        async with bench(*script, policy=CACHING) as b:
            for _ in range(2):
                await b.say(stream=True, stream_options={"include_usage": True})
            assert b.spans[0].cost_usd == pytest.approx(COST_USD)
            assert "paceline.tokens_estimated" not in b.spans[0].attributes
            assert b.spans[1].attributes["paceline.saved_usd"] == pytest.approx(COST_USD)

    run(main())


@pytest.mark.parametrize("patience", [(), ((b"x-paceline-timeout-s", b"5"),)], ids=["without end", "longer"])
def test_a_first_callers_short_deadline_is_not_the_others(patience: tuple[tuple[bytes, bytes], ...]) -> None:
    """Who has more time than the caller that began the call asks again, once for all of them."""

    async def main() -> None:
        async with bench(scripts=[[STALL], PLAIN], policy=SHARING) as b:
            hurried = asyncio.create_task(b.say(headers=((b"x-paceline-timeout-s", b"0.2"),)))
            await until(lambda: len(b.upstream.requests) == 1)
            others = [asyncio.create_task(b.say(headers=patience)) for _ in range(5)]
            assert (await hurried)[:2] == (504, "miss")
            answers = await asyncio.gather(*others)
            assert [(status, body) for status, _, body in answers] == [(200, COMPLETION)] * 5
            assert sorted(outcome for _, outcome, _ in answers) == ["join"] * 4 + ["miss"]
            assert len(b.upstream.requests) == 2
            assert sorted(span.status for span in b.spans) == ["error"] + ["ok"] * 5
            await b.settled()

    run(main())


def test_a_joiners_own_deadline_is_kept() -> None:
    """It is told in time, and the call goes on for who began it."""

    async def main() -> None:
        gate = asyncio.Event()
        async with bench(gate, *PLAIN, policy=SHARING) as b:
            first = asyncio.create_task(b.say())
            await until(lambda: len(b.upstream.requests) == 1)
            status, outcome, body = await b.say(headers=((b"x-paceline-timeout-s", b"0.05"),))
            assert (status, outcome) == (504, "join")
            assert b"no answer began in 0.05 s" in body
            gate.set()
            assert await first == (200, "miss", COMPLETION)
            assert len(b.upstream.requests) == 1
            await b.settled()

    run(main())


def test_a_deadline_no_shorter_than_the_joiners_is_for_all() -> None:
    """Equal deadlines, as SDKs set them: nobody asks again for the moment by which one came later."""

    async def main() -> None:
        said = ((b"x-paceline-timeout-s", b"0.2"),)
        async with bench(STALL, policy=SHARING) as b:
            first = asyncio.create_task(b.say(headers=said))
            await until(lambda: len(b.upstream.requests) == 1)
            second = asyncio.create_task(b.say(headers=said))
            assert {(await call)[0] for call in (first, second)} == {504}
            assert len(b.upstream.requests) == 1
            await b.settled()

    run(main())
