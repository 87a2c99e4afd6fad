"""The client over HTTP/2, against a real server with TLS."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from tests.wire.builders import run, until
from tests.wire.h2_server import (
    CUT,
    DROP,
    EVENTS_200,
    GOAWAY,
    JSON_200,
    REFUSE,
    STALL,
    H2Server,
    Step,
    h2_serving,
    trusting,
)

from paceline.errors import ConfigError, UpstreamBroken, UpstreamTimeout
from paceline.wire.client import ClientLimits, Timeouts
from paceline.wire.clients import Client, client_for


@contextlib.asynccontextmanager
async def asking(*script: Step, timeouts: Timeouts | None = None) -> AsyncIterator[tuple[Client, H2Server]]:
    async with h2_serving(*script) as server:
        limits = ClientLimits(body_bytes=1_000_000)
        client = client_for(server.url, http2=True, tls=trusting(), limits=limits, timeouts=timeouts)
        try:
            yield client, server
        finally:
            assert client.busy == 0
            await client.close()


async def fetch(client: Client, body: bytes = b"{}") -> bytes:
    reply = await client.request("POST", "/v1/x?y=1", [(b"x-a", b"1"), (b"authorization", b"k")], body)
    return await reply.read()


def test_a_call_arrives_as_it_was_made() -> None:
    """Path, headers and body are the caller's, and nothing is added but what HTTP/2 needs."""

    async def main() -> None:
        async with asking(JSON_200, b'{"a":', b"1}") as (client, server):
            reply = await client.request("POST", "/v1/x?y=1", [(b"x-a", b"1")], b"{}")
            assert (reply.status, reply.header(b"content-type")) == (200, b"application/json")
            assert await reply.read() == b'{"a":1}'
            ((head, body),) = server.requests
            assert (head[":method"], head[":path"], head["x-a"], body) == ("POST", "/v1/x?y=1", "1", b"{}")
            assert {name for name in head if not name.startswith(":")} == {"x-a", "content-length"}

    run(main())


def test_calls_at_once_share_a_connection() -> None:
    """That is what HTTP/2 is asked for: 50 calls under way, one connection."""

    async def main() -> None:
        go_on = asyncio.Event()
        async with asking(JSON_200, go_on, b"{}") as (client, server):
            await fetch_later(client, server, go_on)
            assert (server.connections, server.most_streams) == (1, 50)

    async def fetch_later(client: Client, server: H2Server, go_on: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(fetch(client)) for _ in range(50)]
            await until(lambda: len(server.requests) == 50)
            go_on.set()
        assert {call.result() for call in calls} == {b"{}"}

    run(main())


def test_streams_pieces_as_they_come() -> None:
    """The first event is there before the second is sent."""

    async def main() -> None:
        go_on = asyncio.Event()
        async with asking(EVENTS_200, b"data: a\n\n", go_on, b"data: b\n\n") as (client, _):
            reply = await client.request("POST", "/", [], b"{}")
            assert await reply.__anext__() == b"data: a\n\n"
            go_on.set()
            got: list[bytes] = []
            await reply.forward(got.append)
            assert got == [b"data: b\n\n"]

    run(main())


def test_bodies_larger_than_the_window_pass() -> None:
    """Flow control in both directions: more than the 64 KB that are allowed at first."""

    async def main() -> None:
        async with asking(JSON_200, b"x" * 300_000) as (client, server):
            assert await fetch(client, b"y" * 300_000) == b"x" * 300_000
            assert len(server.requests[0][1]) == 300_000

    run(main())


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ([CUT], "it cut the answer"),
        ([EVENTS_200, b"a", CUT], "it cut the answer"),
        ([DROP], "localhost"),
        ([EVENTS_200, b"a", DROP], "localhost"),
        ([JSON_200, b"x" * 1_000_001], "more than 1000000 bytes"),
    ],
    ids=["cut", "cut in the body", "dropped", "dropped in the body", "too large"],
)
def test_broken_answers_raise_and_leave_nothing(script: list[Step], problem: str) -> None:
    """UpstreamBroken, and the next call succeeds."""

    async def main() -> None:
        async with asking(*script) as (client, server):
            with pytest.raises(UpstreamBroken, match=problem):
                await fetch(client)
            assert client.busy == 0
            server.script = [JSON_200, b"{}"]
            assert await fetch(client) == b"{}"

    run(main())


@pytest.mark.parametrize(("script", "phase"), [([STALL], "first_byte"), ([EVENTS_200, b"a", STALL], "silence")])
def test_silence_is_a_timeout(script: list[Step], phase: str) -> None:
    """Both phases have a limit of their own; the stream is given up, the connection stays."""

    async def main() -> None:
        timeouts = Timeouts(**{"first_byte_s": 5.0, "silence_s": 5.0, f"{phase}_s": 0.05})
        async with asking(JSON_200, b"{}", timeouts=timeouts) as (client, server):
            if phase == "silence":
                await fetch(client)  # connecting is not what is timed here
            server.script = script
            with pytest.raises(UpstreamTimeout) as caught:
                await fetch(client)
            assert (caught.value.phase, client.busy) == (phase, 0)

    run(main())


def test_an_answer_given_up_resets_its_stream_only() -> None:
    """The server hears of it, and others on the connection go on."""

    async def main() -> None:
        async with asking(EVENTS_200, b"a", STALL) as (client, server):
            reply = await client.request("POST", "/", [], b"{}")
            assert await reply.__anext__() == b"a"
            other = await client.request("POST", "/", [], b"{}")
            reply.close()
            reply.close()
            await until(lambda: server.resets == 1)
            assert (client.busy, server.connections) == (1, 1)
            assert await other.__anext__() == b"a"
            other.close()
            await until(lambda: server.resets == 2)

    run(main())


def test_a_server_that_goes_away_is_connected_to_again() -> None:
    """GOAWAY after a complete answer: the next call has a new connection."""

    async def main() -> None:
        async with asking(JSON_200, b"{}") as (client, server):
            assert await fetch(client) == b"{}"
            server.script = [JSON_200, b"{}", GOAWAY]
            with contextlib.suppress(UpstreamBroken):
                await fetch(client)
            server.script = [JSON_200, b"{}"]
            assert await fetch(client) == b"{}"
            assert server.connections == 2

    run(main())


def test_an_answer_that_never_began_is_given_up_too() -> None:
    """A caller who leaves while the model thinks stops it: the provider need not finish for nobody."""

    async def main() -> None:
        async with asking(STALL) as (client, server):
            call = asyncio.create_task(fetch(client))
            await until(lambda: len(server.requests) == 1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await until(lambda: server.resets == 1)

    run(main())


def test_a_slow_consumer_holds_its_own_answer_only() -> None:
    """What waits is bounded by the stream's window, and other calls on the connection go on."""

    async def main() -> None:
        async with asking(JSON_200, b"x" * 900_000) as (client, server):
            slow = await client.request("POST", "/", [], b"{}")
            await asyncio.gather(*(fetch(client) for _ in range(5)))
            assert server.connections == 1
            assert server.blocked == 1
            assert await slow.read() == b"x" * 900_000

    run(main())


def test_a_server_that_refuses_a_stream_is_asked_again() -> None:
    """REFUSED_STREAM says that nothing was done: the request is sent once more."""

    async def main() -> None:
        async with h2_serving(REFUSE) as server:
            client = client_for(server.url, http2=True, tls=trusting())
            with pytest.raises(UpstreamBroken, match="REFUSED_STREAM"):
                await fetch(client)
            assert len(server.requests) == 2
            await client.close()

    run(main())


def test_idle_connections_are_closed() -> None:
    """After `idle_s`."""

    async def main() -> None:
        async with h2_serving(JSON_200, b"{}") as server:
            client = client_for(server.url, http2=True, tls=trusting(), limits=ClientLimits(idle_s=0.02))
            await fetch(client)
            await until(lambda: client.idle == 0)
            await until(lambda: server.open == 0)
            await client.close()

    run(main())


def test_calls_wait_where_neither_stream_nor_connection_is_free() -> None:
    """The server's bound of streams and the client's of connections hold; nobody is lost."""

    async def main() -> None:
        go_on = asyncio.Event()
        async with h2_serving(JSON_200, go_on, b"{}", streams=2) as server:
            client = client_for(server.url, http2=True, tls=trusting(), limits=ClientLimits(connections=2))
            calls = [asyncio.create_task(fetch(client)) for _ in range(7)]
            await until(lambda: len(server.requests) == 4)
            assert (server.connections, server.most_streams, client.busy) == (2, 2, 4)
            go_on.set()
            assert await asyncio.gather(*calls) == [b"{}"] * 7
            await client.close()

    run(main())


def test_a_server_without_http2_is_named() -> None:
    """Instead of garbage on the wire."""

    async def main() -> None:
        async with h2_serving(protocols=("http/1.1",)) as server:
            client = client_for(server.url, http2=True, tls=trusting())
            with pytest.raises(UpstreamBroken, match=r"does not speak HTTP/2|cannot be reached"):
                await fetch(client)
            await client.close()

    run(main())


def test_http_urls_are_refused() -> None:
    """HTTP/2 without TLS is not offered."""
    with pytest.raises(ConfigError, match="needs an https URL; got 'http://localhost'"):
        client_for("http://localhost", http2=True)
