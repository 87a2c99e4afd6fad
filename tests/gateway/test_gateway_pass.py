"""Passing on: byte for byte, unknown things untouched, our own things kept back."""

import asyncio

import msgspec
import pytest
from tests.gateway.builders import CHAT, COMPLETION, EVENTS, JSON, PLAIN, STREAM, bench
from tests.wire.builders import STREAM_END, STREAM_HEAD, answer, chunk, ok, run

from paceline.accelerate.policy import Policy
from paceline.accelerate.routing.policy import Route, RoutingPolicy


def test_a_plain_answer_passes_byte_for_byte() -> None:
    """Status, headers and body come through; so does the request, apart from hop-by-hop and our own headers."""

    async def main() -> None:
        async with bench(ok(COMPLETION, JSON, b"x-request-id: r1", b"keep-alive: timeout=5")) as b:
            headers = (
                (b"authorization", b"Bearer k"),
                (b"x-custom", b"1"),
                (b"x-custom", b"2"),
                (b"x-paceline-step", b"answer"),
                (b"te", b"trailers"),
                (b"connection", b"x-hop"),
                (b"x-hop", b"secret"),
                (b"traceparent", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01"),
            )
            reply = await b.ask(headers=headers, unheard_of={"b": 1, "a": [1.0, 2]})
            assert (reply.status, await reply.read()) == (200, COMPLETION)
            assert reply.header(b"x-request-id") == b"r1"
            assert reply.header(b"keep-alive") is None
            assert reply.header(b"x-paceline-cache") == b"bypass"
            head, body = b.upstream.requests[0].split(b"\r\n\r\n")
            assert msgspec.json.decode(body)["unheard_of"] == {"b": 1, "a": [1.0, 2]}
            names = [line.split(b":")[0] for line in head.split(b"\r\n")[1:]]
            assert sorted(names) == sorted(
                b"host content-type authorization x-custom x-custom traceparent accept-encoding content-length".split()
            )
            await b.settled()

    run(main())


def test_a_stream_passes_as_it_comes() -> None:
    """Each event reaches the client before the provider sends the next one."""

    async def main() -> None:
        gates = [asyncio.Event() for _ in EVENTS]
        script = [
            STREAM_HEAD,
            *(step for gate, event in zip(gates, EVENTS, strict=True) for step in (gate, chunk(event))),
        ]
        async with bench(*script, STREAM_END) as b:
            reply = await b.ask(stream=True)
            for gate, event in zip(gates, EVENTS, strict=True):
                gate.set()
                assert await reply.__anext__() == event
            assert await reply.read() == b""
            await b.settled()

    run(main())


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
def test_provider_errors_pass_unchanged(status: int) -> None:
    """The provider's own words reach the caller, retry headers included."""
    body = b'{"error": {"message": "no"}}'

    async def main() -> None:
        async with bench(answer(status, body, b"retry-after: 7")) as b:
            reply = await b.ask()
            assert (reply.status, reply.header(b"retry-after"), await reply.read()) == (status, b"7", body)
            assert b.spans[0].status == "error"
            assert b.spans[0].error == str(status)
            assert b.spans[0].cost_usd == 0.0

    run(main())


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/v1/models?x=%20y"), ("DELETE", "/v1/files/f1"), ("POST", "/v1/audio/speech"), ("HEAD", "/")],
)
def test_unknown_paths_pass(method: str, target: str) -> None:
    """Anything the provider has is reachable, query untouched, with one plain span."""

    async def main() -> None:
        script = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n" if method == "HEAD" else ok(b"abc")
        async with bench(script) as b:
            reply = await b.client.request(method, target, [], b"raw\xff" if method == "POST" else b"")
            assert (reply.status, await reply.read()) == (200, b"" if method == "HEAD" else b"abc")
            assert b.upstream.requests[0].startswith(f"{method} {target} HTTP/1.1".encode())
            assert [span.kind for span in b.spans] == ["http.client"]

    run(main())


def test_compressed_answers_are_not_asked_for_on_model_calls() -> None:
    """So that usage can be read; other paths keep what the client accepts."""

    async def main() -> None:
        async with bench(*PLAIN) as b:
            await b.say(headers=((b"accept-encoding", b"gzip, br"),))
            await (await b.client.request("GET", "/v1/models", [(b"accept-encoding", b"gzip")])).read()
            assert b"accept-encoding: identity\r\n" in b.upstream.requests[0]
            assert b"gzip" not in b.upstream.requests[0]
            assert b"accept-encoding: gzip\r\n" in b.upstream.requests[1]

    run(main())


def test_a_compressed_answer_passes_unread() -> None:
    """A provider that compresses anyway is passed on, without tokens being made up."""

    async def main() -> None:
        async with bench(ok(b"\x1f\x8b...", JSON, b"content-encoding: gzip")) as b:
            assert (await b.say())[2] == b"\x1f\x8b..."
            assert (b.spans[0].input_tokens, b.spans[0].cost_usd) == (None, None)

    run(main())


def test_a_large_answer_is_streamed_not_held() -> None:
    """More than the memory bound of one answer passes through."""
    size = 6 * 1024 * 1024

    async def main() -> None:
        async with bench(ok(b"x" * size)) as b:
            reply = await b.client.request("GET", "/v1/files/f/content")
            assert len(await reply.read()) == size
            assert reply.header(b"content-length") == b"%d" % size

    run(main())


def test_a_step_is_routed_to_its_model() -> None:
    """The routed step's call has the other model and otherwise the same bytes; other steps are left alone."""
    policy = Policy(routing=RoutingPolicy(routes=[Route(step="classify_intent", model="gpt-4o-mini")]))

    async def main() -> None:
        async with bench(*PLAIN, policy=policy) as b:
            for step in (b"classify_intent", b"answer"):
                await b.say(headers=((b"x-paceline-step", step),), model="gpt-4o")
            bodies = [request.split(b"\r\n\r\n")[1] for request in b.upstream.requests]
            assert bodies[0] == bodies[1].replace(b"gpt-4o", b"gpt-4o-mini")
            assert [span.model for span in b.spans] == ["gpt-4o-mini", "gpt-4o"]

    run(main())


def test_health_and_unknown_own_pages() -> None:
    """/-/ is ours: health answers 200 without a span, anything else 404, and nothing reaches the provider."""

    async def main() -> None:
        async with bench(*PLAIN) as b:
            health = await b.client.request("GET", "/-/health")
            assert health.status == 200
            assert msgspec.json.decode(await health.read())["status"] == "ok"
            other = await b.client.request("GET", "/-/other")
            assert (other.status, await other.read()) != (200, b"")
            assert (b.upstream.requests, b.spans) == ([], [])

    run(main())


def test_streams_and_plain_calls_share_nothing_without_a_policy() -> None:
    """No policy: every call goes to the provider."""

    async def main() -> None:
        async with bench(scripts=[PLAIN, PLAIN, STREAM]) as b:
            outcomes = [(await b.say())[1], (await b.say())[1], (await b.say(stream=True))[1]]
            assert outcomes == ["bypass"] * 3
            assert len(b.upstream.requests) == 3
            assert all(request.startswith(b"POST " + CHAT.encode()) for request in b.upstream.requests)

    run(main())
