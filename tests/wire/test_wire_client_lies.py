"""A client against servers that lie, drip, reset and send too much: a clear error or the right bytes, nothing left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.examples import examples
from tests.wire.builders import (
    CLOSE,
    RESET,
    STREAM_END,
    STREAM_HEAD,
    Step,
    chunk,
    ok,
    run,
    scripted,
    serving,
    until,
)

from paceline.errors import UpstreamBroken, UpstreamError
from paceline.wire.client import ClientLimits, HttpClient, Timeouts
from paceline.wire.http import HttpRequest, Reply

HEAD = b"HTTP/1.1 200 OK\r\n"


@contextlib.asynccontextmanager
async def client_of(url: str, **limits: float) -> AsyncIterator[HttpClient]:
    timeouts = Timeouts(connect_s=2.0, first_byte_s=2.0, silence_s=2.0)
    client = HttpClient(url, timeouts=timeouts, limits=ClientLimits(**limits))  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.close()


async def read(client: HttpClient) -> bytes:
    return await (await client.request("POST", "/", [], b"{}")).read()


LIES: dict[str, list[Step]] = {
    "length-too-long": [HEAD + b"content-length: 10\r\n\r\nabc", CLOSE],
    "length-too-long-reset": [HEAD + b"content-length: 10\r\n\r\nabc", RESET],
    "length-negative": [HEAD + b"content-length: -1\r\n\r\n"],
    "length-huge": [HEAD + b"content-length: 99999999999999999999999\r\n\r\nabc"],
    "two-lengths": [HEAD + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd"],
    "length-and-chunked": [HEAD + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"],
    "chunk-cut": [STREAM_HEAD + b"5\r\nab", CLOSE],
    "chunk-cut-reset": [STREAM_HEAD + b"5\r\nab", RESET],
    "chunk-size-garbage": [STREAM_HEAD + b"zz\r\nab\r\n"],
    "chunk-longer-than-said": [STREAM_HEAD + b"2\r\nabc\r\n0\r\n\r\n"],
    "no-last-chunk": [STREAM_HEAD + chunk(b"ab"), CLOSE],
    "extension-bomb": [STREAM_HEAD, b"1;" + b"e" * 600_000],
    "trailer-bomb": [STREAM_HEAD + chunk(b"ab") + b"0\r\n" + b"x: y\r\n" * 100_000],
    "head-bomb": [HEAD, b"x: y\r\n" * 100_000],
    "interim-bomb": [b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" * 20_000],
    "bare-lf": [b"HTTP/1.1 200 OK\ncontent-length: 0\n\n"],
    "folded": [HEAD + b"x: y\r\n z\r\ncontent-length: 0\r\n\r\n"],
    "nul": [HEAD + b"x: a\x00b\r\ncontent-length: 0\r\n\r\n"],
    "not-http": [b"SSH-2.0-OpenSSH_9.2\r\n"],
    "http-2": [b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00d"],
    "upgrade": [b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nabc"],
    "nothing": [CLOSE],
    "half-a-head": [HEAD + b"content-le", CLOSE],
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES.keys())
def test_a_lie_is_a_broken_answer(lie: list[Step]) -> None:
    """UpstreamBroken, the connection gone, and the next request answered on a new one."""

    async def main() -> None:
        async with scripted(scripts=[lie, [ok(b"fine")]]) as server, client_of(server.url) as client:
            with pytest.raises(UpstreamBroken):
                await read(client)
            await until(lambda: not client.busy)
            assert client.idle == 0
            assert await read(client) == b"fine"

    run(main())


@pytest.mark.parametrize(
    "surplus", [ok(b"poison"), b"garbage", b"\x00", HEAD], ids=["an-answer", "garbage", "a-byte", "half-an-answer"]
)
def test_more_than_was_asked_is_nobody_elses_answer(surplus: bytes) -> None:
    """Bytes behind an answer, with it or later, are never taken for the answer to the next request."""

    async def main() -> None:
        for first in ([ok(b"first") + surplus], [ok(b"first"), surplus]):
            scripts: list[list[Step]] = [[*first], [ok(b"second")]]
            async with scripted(scripts=scripts) as server, client_of(server.url) as client:
                assert await read(client) == b"first"
                await asyncio.sleep(0.002)
                assert await read(client) == b"second"
                assert server.connections == 2

    run(main())


def test_trailers_do_not_change_the_head() -> None:
    """What follows the last chunk is no header of the answer that was handed out."""

    async def main() -> list[tuple[bytes, bytes]]:
        trailed = STREAM_HEAD + chunk(b"ab") + b"0\r\nx-evil: 1\r\n\r\n"
        async with scripted(trailed) as server, client_of(server.url) as client:
            reply = await client.request("POST", "/", [], b"{}")
            assert await reply.read() == b"ab"
            assert client.idle == 1
            return reply.headers

    assert b"x-evil" not in dict(run(main()))


@pytest.mark.slow
def test_a_gigabyte_passes_in_bounded_memory() -> None:
    """A body of 1 GB streams through a few hundred KB; read whole, it is refused at the limit."""
    piece = bytes(1 << 20)

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"{}")
                writer.write(HEAD + b"content-length: %d\r\n\r\n" % (len(piece) << 10))
                for _ in range(1 << 10):
                    writer.write(piece)
                    await writer.drain()
        writer.close()

    async def main() -> tuple[int, int]:
        listener = await asyncio.start_server(flood, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with client_of(url, body_bytes=10 << 20) as client:
            with pytest.raises(UpstreamBroken, match="more than 10485760 bytes"):
                await read(client)
            before, received, grown = psutil.Process().memory_info().rss, 0, 0
            async for data in await client.request("POST", "/", [], b"{}"):
                received += len(data)
                if received >> 27 != (received - len(data)) >> 27:
                    grown = max(grown, psutil.Process().memory_info().rss - before)
        listener.close()
        await until(lambda: len(asyncio.all_tasks()) == 1)
        return received, grown

    received, grown = run(main())
    assert received == 1 << 30
    assert grown < 64 << 20


def test_a_consumer_that_stops_stops_the_server() -> None:
    """What nobody takes is not received: a few hundred KB wait here, whatever the server would send."""
    sent = []

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"{}")
            writer.write(HEAD + b"\r\n")
            for _ in range(1000):
                writer.write(bytes(1 << 16))
                await writer.drain()
                sent.append(1 << 16)
        writer.close()

    async def main() -> None:
        listener = await asyncio.start_server(flood, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with client_of(url) as client:
            reply = await client.request("POST", "/", [], b"{}")
            before = -1
            while before != len(sent):
                before = len(sent)
                await asyncio.sleep(0.02)
            assert sum(sent) < 16 << 20
            reply.close()
        listener.close()
        await until(lambda: len(asyncio.all_tasks()) == 1)

    run(main())


@pytest.mark.slow
@examples(60)
@given(
    st.lists(
        st.sampled_from(
            [
                HEAD,
                b"HTTP/1.1 100 Continue\r\n\r\n",
                b"HTTP/1.1 204 No Content\r\n",
                b"content-length: 3\r\n",
                b"transfer-encoding: chunked\r\n",
                b"connection: close\r\n",
                b"\r\n",
                b"abc",
                b"3\r\nabc\r\n",
                b"0\r\n\r\n",
                b"\n",
            ]
        )
        | st.binary(max_size=5),
        max_size=10,
    ),
    st.sampled_from([CLOSE, RESET]),
)
def test_a_client_survives_any_answer(parts: list[bytes], end: str) -> None:
    """Any bytes: an answer or an UpstreamError, no other exception; no connection or task is left."""

    async def main() -> None:
        problems: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with scripted(*parts, end) as server, client_of(server.url) as client:
            for _ in range(2):
                with contextlib.suppress(UpstreamError):
                    await read(client)
            assert client.busy == 0
        assert not problems

    run(main())


def test_cut_anywhere_an_answer_is_the_same_answer() -> None:
    """Whatever the packets: status, headers and body of each framing."""
    answers: list[tuple[bytes, bytes]] = [
        (ok(b"hello", b"x: y"), b"hello"),
        (b"HTTP/1.1 103 Early Hints\r\nlink: z\r\n\r\n" + ok(b"hi", b"x: y"), b"hi"),
        (STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nx: y\r\n\r\n") + chunk(b"ab") + chunk(b"cd") + STREAM_END, b"abcd"),
    ]

    async def main() -> None:
        for whole, body in answers:
            scripts: list[list[Step]] = [[whole[:at], whole[at:]] for at in range(1, len(whole))]
            scripts.append([bytes([byte]) for byte in whole])
            async with scripted(scripts=scripts) as server, client_of(server.url) as client:
                for _ in scripts:
                    reply = await client.request("POST", "/", [], b"{}")
                    assert (reply.status, reply.header(b"x")) == (200, b"y")
                    assert await reply.read() == body
                assert server.connections == 1

    run(main())


def test_a_reader_that_stops_stops_the_server_behind_ours() -> None:
    """Passed on through our server, a flood is held back by the client that does not read it, and then goes on."""
    sent: list[int] = []

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"{}")
            writer.write(HEAD + b"content-length: %d\r\n\r\n" % (500 << 16))
            for _ in range(500):
                writer.write(bytes(1 << 16))
                await writer.drain()
                sent.append(1 << 16)
        writer.close()

    async def main() -> int:
        listener = await asyncio.start_server(flood, "127.0.0.1", 0)
        async with client_of(f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}") as client:

            async def pass_on(request: HttpRequest) -> Reply:
                reply = await client.request("POST", "/", [], b"{}")
                return Reply(reply.status, [(b"content-length", reply.header(b"content-length") or b"")], reply)

            async with serving(pass_on) as server:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1 << 16)
                writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                before = -1
                while before != len(sent):
                    before = len(sent)
                    await asyncio.sleep(0.02)
                assert before < 400
                await reader.readuntil(b"\r\n\r\n")
                received = 0
                while data := await reader.read(1 << 20):
                    received += len(data)
                writer.close()
        listener.close()
        return received

    assert run(main()) == 500 << 16
