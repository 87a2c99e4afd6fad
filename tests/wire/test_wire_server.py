"""The server protocol over real sockets."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable

import pytest
from tests.wire.builders import raw, run, serving, until

from paceline.errors import ConfigError
from paceline.wire.client import HttpClient
from paceline.wire.connection import Connection
from paceline.wire.http import Handler, HttpRequest, Reply
from paceline.wire.intake import Intake
from paceline.wire.server import serve


def echo(request: HttpRequest) -> Reply:
    return Reply(200, [(b"x-target", request.target.encode())], request.method.encode() + b" " + request.body)


def request_bytes(body: bytes = b"", *headers: bytes, target: bytes = b"/x", close: bool = True) -> bytes:
    lines = [b"POST %b HTTP/1.1" % target, b"host: a", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines + [b"connection: close"] * close) + b"\r\n\r\n" + body


def test_answers_a_request_with_its_body() -> None:
    """Method, target with query and body reach the handler; the reply comes back framed."""

    async def main() -> bytes:
        async with serving(echo) as server:
            return await raw(server.port, request_bytes(b"hello", target=b"/a?b=c"))

    head, body = run(main()).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nx-target: /a?b=c\r\ncontent-length: 10")
    assert body == b"POST hello"


def test_answers_pipelined_requests_in_order() -> None:
    """A slow first answer holds the later ones back, and none is lost."""

    async def slow_first(request: HttpRequest) -> Reply:
        if request.body == b"0":
            await asyncio.sleep(0.005)
        return Reply(200, [], b"<" + request.body + b">")

    async def main() -> bytes:
        async with serving(slow_first) as server:
            sent = [request_bytes(b"%d" % i, close=i == 39) for i in range(40)]
            return await raw(server.port, b"".join(sent))

    answer = run(main())
    positions = [answer.index(b"<%d>" % i) for i in range(40)]
    assert positions == sorted(positions)


def test_a_request_cut_anywhere_is_the_same_request() -> None:
    """Bytes arriving one by one parse like bytes arriving at once."""

    async def main() -> bytes:
        async with serving(echo) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for i in request_bytes(b"hello", b"x-long: " + b"y" * 20):
                writer.write(bytes([i]))
                await asyncio.sleep(0)
            answer = await reader.read()
            writer.close()
            return answer

    assert run(main()).endswith(b"POST hello")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
            id="length-and-chunked",
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd", 400, id="two-lengths"
        ),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n", 400, id="not-chunked-last"
        ),
        pytest.param(b"GET / HTTP/1.1\r\nhost : a\r\n\r\n", 400, id="space-before-colon"),
        pytest.param(b"GET / HTTP/1.1\r\nho st: a\r\n\r\n", 400, id="space-in-name"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\n x: y\r\n\r\n", 400, id="folded-header"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\nx: a\x00b\r\n\r\n", 400, id="nul-in-value"),
        pytest.param(b"GET / HTTP/1.1\nhost: a\n\n", 400, id="bare-line-feeds"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", 400, id="no-host"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, id="two-hosts"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00", 400, id="tls-hello"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n", 501, id="upgrade"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 3000, 431, id="endless-header"),
        pytest.param(b"GET /" + b"a" * 3000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 431, id="long-target"),
        pytest.param(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5000\r\n\r\n", 413, id="announced-body"),
        pytest.param(
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n1000\r\n" + b"a" * 0x1000,
            413,
            id="chunked-body",
        ),
    ],
)
def test_refuses_and_closes(data: bytes, status: int) -> None:
    """Ambiguous, malformed and oversized requests get one refusal and never reach the handler."""
    reached = []

    def handler(request: HttpRequest) -> Reply:
        reached.append(request)
        return Reply(200)

    async def main() -> bytes:
        async with serving(handler, head_bytes=2000, body_bytes=2000) as server:
            answer = await raw(server.port, data)
            await until(lambda: not server.sessions)
            assert b"200 OK" in await raw(server.port, request_bytes(b"fine"))
            return answer

    assert run(main()).startswith(b"HTTP/1.1 %d " % status)
    assert len(reached) == 1


def test_a_refusal_waits_for_the_answer_before_it() -> None:
    """Garbage after a good request does not overtake the good request's answer."""

    async def slow(request: HttpRequest) -> Reply:
        await asyncio.sleep(0.005)
        return echo(request)

    async def main() -> bytes:
        async with serving(slow) as server:
            return await raw(server.port, request_bytes(b"good", close=False) + b"GARBAGE\r\n\r\n")

    answer = run(main())
    assert answer.index(b"POST good") < answer.index(b"400 Bad Request")


async def events(log: list[str], count: int = 3) -> AsyncIterator[bytes]:
    try:
        for i in range(count):
            yield b"piece %d" % i
            await asyncio.sleep(0)
    finally:
        log.append("closed")


def test_streams_chunks_as_they_come_and_closes_the_body() -> None:
    """Every piece is a chunk of its own, the end is marked, the iterator is closed."""
    log: list[str] = []

    async def main() -> bytes:
        async with serving(lambda _: Reply(200, [], events(log))) as server:
            return await raw(server.port, request_bytes())

    answer = run(main())
    assert answer.endswith(b"7\r\npiece 0\r\n7\r\npiece 1\r\n7\r\npiece 2\r\n0\r\n\r\n")
    assert log == ["closed"]


def test_a_list_body_is_chunked_like_a_stream() -> None:
    """A list is sent at once, each piece a chunk."""

    async def main() -> bytes:
        async with serving(lambda _: Reply(200, [], [b"ab", b"", b"c"])) as server:
            return await raw(server.port, request_bytes())

    assert run(main()).endswith(
        b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    )


def test_old_clients_get_an_unchunked_stream() -> None:
    """HTTP/1.0 knows no chunks: the body ends with the connection."""

    async def main() -> bytes:
        async with serving(lambda _: Reply(200, [], events([]))) as server:
            return await raw(server.port, b"GET / HTTP/1.0\r\n\r\n")

    assert run(main()).endswith(b"\r\n\r\npiece 0piece 1piece 2")


def test_a_failing_stream_is_cut_not_ended() -> None:
    """A body that raises never gets its final chunk, so the client can tell."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        await asyncio.sleep(0)
        raise RuntimeError

    async def main() -> bytes:
        async with serving(lambda _: Reply(200, [], broken())) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request_bytes(close=False))
            got = b""
            try:
                while data := await reader.read(100):
                    got += data
            except ConnectionError:
                pass
            writer.close()
            await until(lambda: not server.sessions)
            return got

    answer = run(main())
    assert not answer.endswith(b"0\r\n\r\n")


def test_client_gone_closes_the_stream() -> None:
    """When the client disconnects in the middle, the body iterator is closed and nothing is left."""
    log: list[str] = []

    async def main() -> None:
        async with serving(lambda _: Reply(200, [], events(log, 1_000_000))) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request_bytes())
            await reader.readuntil(b"piece 1")
            writer.close()
            await until(lambda: log and not server.sessions)
            assert server.busy == 0

    run(main())
    assert log == ["closed"]


def test_client_gone_cancels_a_waiting_handler() -> None:
    """A handler that has not answered yet is cancelled when its client leaves, and can see it."""
    seen: list[bool] = []

    async def wait(request: HttpRequest) -> Reply:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append(request.closed)
            raise
        return Reply(200)

    async def main() -> None:
        async with serving(wait) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request_bytes())
            await until(lambda: server.busy)
            writer.close()
            await until(lambda: seen and not server.sessions)

    run(main())
    assert seen == [True]


def test_what_a_handler_took_is_given_back_though_the_client_left_at_once() -> None:
    """A client that leaves before the handler's coroutine began still lets it begin, so that it can end."""
    held: list[int] = []

    def take(_: HttpRequest) -> Awaitable[Reply]:
        held.append(1)

        async def give_back() -> Reply:
            try:
                await asyncio.Event().wait()
            finally:
                held.pop()
            return Reply(200)

        return give_back()

    async def main() -> None:
        async with serving(take) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await until(lambda: server.sessions)
            [session] = server.sessions
            session.data_received(request_bytes())
            assert held
            session.connection_lost(None)
            await until(lambda: not held)
            writer.close()

    run(main())


def test_a_handler_that_raises_answers_500(caplog: pytest.LogCaptureFixture) -> None:
    """Bugs in a handler are logged and answered, at once or awaited, and the connection goes on."""

    async def later(_: HttpRequest) -> Reply:
        raise RuntimeError

    def now(_: HttpRequest) -> Reply:
        raise RuntimeError

    async def main(handler: Handler) -> bytes:
        async with serving(handler) as server:
            return await raw(server.port, request_bytes(close=False) + request_bytes())

    for handler in (later, now):
        assert run(main(handler)).count(b"500 Internal Server Error") == 2
    assert "handler failed for POST /x" in caplog.text


def test_a_slow_reader_holds_the_stream_back() -> None:
    """A client that does not read stops the body being produced, and then is cut off."""
    produced = []

    async def endless() -> AsyncIterator[bytes]:
        while True:
            produced.append(1)
            yield b"x" * 65536

    async def main() -> int:
        async with serving(lambda _: Reply(200, [], endless()), write_s=0.0) as server:
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request_bytes())
            await until(lambda: len(produced) > 3)
            before = -1
            while before != len(produced):
                before = len(produced)
                await asyncio.sleep(0.01)
            for session in server.sessions:
                session.check_time(asyncio.get_running_loop().time() + 1)
            await until(lambda: not server.sessions)
            writer.close()
            return before

    assert run(main()) * 65536 < 64 * 1024 * 1024


def test_slow_and_idle_connections_are_ended() -> None:
    """An unfinished request gets 408, an idle connection is closed without a word."""

    async def main() -> tuple[bytes, bytes]:
        async with serving(echo) as server:
            answers = []
            for start in (b"POST / HTTP/1.1\r\nhost: a\r\ncont", b""):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(start)
                await until(lambda: server.sessions)
                await asyncio.sleep(0.005)
                for session in list(server.sessions):
                    session.check_time(asyncio.get_running_loop().time() + 1000)
                answers.append(await reader.read())
                writer.close()
                await until(lambda: not server.sessions)
            return answers[0], answers[1]

    slow, idle = run(main())
    assert slow.startswith(b"HTTP/1.1 408 ")
    assert idle == b""


def test_close_lets_requests_in_flight_finish() -> None:
    """Closing refuses new connections, answers what is in flight and says the connection ends."""

    async def slow(request: HttpRequest) -> Reply:
        await asyncio.sleep(0.02)
        return echo(request)

    async def main() -> bytes:
        server = await serve(slow, "127.0.0.1", 0)
        answering = asyncio.create_task(raw(server.port, request_bytes(b"last", close=False)))
        await until(lambda: server.busy)
        await server.close(5.0)
        assert not server.sessions
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", server.port)
        return await answering

    answer = run(main())
    assert b"connection: close" in answer
    assert answer.endswith(b"POST last")


def test_close_cuts_what_outlasts_the_grace() -> None:
    """After the grace time, handlers are cancelled and connections are gone."""

    async def never(_: HttpRequest) -> Reply:
        await asyncio.Event().wait()
        return Reply(200)

    async def main() -> None:
        server = await serve(never, "127.0.0.1", 0)
        answering = asyncio.create_task(raw(server.port, request_bytes()))
        await until(lambda: server.busy)
        await server.close(0.0)
        await until(lambda: not server.sessions)
        await asyncio.gather(answering, return_exceptions=True)

    run(main())


def test_a_taken_port_is_one_clear_sentence() -> None:
    """Binding a port in use says which and what to do."""

    async def main() -> None:
        async with serving(echo) as server:
            await serve(echo, "127.0.0.1", server.port)

    with pytest.raises(ConfigError, match=r"cannot listen on 127\.0\.0\.1:\d+: .*choose another"):
        run(main())


def test_expect_continue_is_answered_before_the_body() -> None:
    """A client that waits for 100 Continue gets it."""

    async def main() -> bytes:
        async with serving(echo) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                b"POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\nconnection: close\r\n\r\n"
            )
            first = await reader.readuntil(b"\r\n\r\n")
            writer.write(b"hi")
            rest = await reader.read()
            writer.close()
            return first + rest

    answer = run(main())
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert answer.endswith(b"POST hi")


def test_closed_connections_leave_nothing_to_the_garbage_collector() -> None:
    """A parser holds its owner's callbacks: that ring is opened, on both sides, when the connection is gone."""

    def alive() -> int:
        return sum(isinstance(each, Intake | Connection) for each in gc.get_objects())

    async def main() -> None:
        async with serving(echo) as server:
            for _ in range(5):
                client = HttpClient(f"http://127.0.0.1:{server.port}")
                reply = await client.request("POST", "/x", [], b"hello")
                assert await reply.read() == b"POST hello"
                await client.close()
                del client, reply
            await until(lambda: alive() == before)

    gc.collect()
    before = alive()
    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()
