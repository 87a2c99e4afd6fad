"""The client against servers that behave, and servers that do not."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import pytest
from tests.wire.builders import (
    CLOSE,
    RESET,
    STALL,
    STREAM_END,
    STREAM_HEAD,
    Step,
    answer,
    chunk,
    ok,
    run,
    scripted,
    until,
)

from paceline.errors import ConfigError, UpstreamBroken, UpstreamTimeout
from paceline.wire.client import ClientLimits, HttpClient, Timeouts, connect, encode_headers, encode_request
from paceline.wire.http import HttpRequest, Reply
from paceline.wire.server import serve

QUICK = Timeouts(connect_s=2.0, first_byte_s=0.03, silence_s=0.03)


@contextlib.asynccontextmanager
async def client_of(url: str, timeouts: Timeouts | None = None, **limits: float) -> AsyncIterator[HttpClient]:
    client = HttpClient(url, timeouts=timeouts, limits=ClientLimits(**limits))  # type: ignore[arg-type]
    try:
        yield client
    finally:
        await client.close()


async def fetch(client: HttpClient, method: str = "POST", body: bytes = b"{}") -> tuple[int, bytes]:
    reply = await client.request(method, "/x", [], body)
    return reply.status, await reply.read()


def test_keeps_and_reuses_one_connection() -> None:
    """Requests one after the other go over one connection; the host header is ours."""

    async def main() -> None:
        async with scripted(ok(b"hi")) as server, client_of(server.url) as client:
            for _ in range(3):
                assert await fetch(client) == (200, b"hi")
            assert (server.connections, client.idle, client.busy) == (1, 1, 0)
            assert server.requests[0].startswith(b"POST /x HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % server.port)

    run(main())


def test_prefix_of_the_base_url_comes_before_the_target() -> None:
    """A path in the base URL is kept."""

    async def main() -> None:
        async with scripted(ok(b"")) as server, client_of(server.url + "/api/") as client:
            await fetch(client)
            assert server.requests[0].startswith(b"POST /api/x HTTP/1.1")

    run(main())


@pytest.mark.parametrize(
    ("script", "kept"),
    [
        pytest.param([STREAM_HEAD, chunk(b"ab"), chunk(b"c"), STREAM_END], True, id="chunked"),
        pytest.param([STREAM_HEAD + chunk(b"abc")[:4], chunk(b"abc")[4:] + STREAM_END], True, id="chunk-cut-in-two"),
        pytest.param([b"HTTP/1.1 200 OK\r\n\r\nab", b"c", CLOSE], False, id="until-close"),
        pytest.param([ok(b"abc", b"connection: close"), CLOSE], False, id="connection-close"),
        pytest.param([ok(b"abc") + b"surplus"], False, id="surplus-bytes"),
        pytest.param([b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + ok(b"abc")], True, id="early-hints"),
    ],
)
def test_reads_every_framing(script: list[Step], kept: bool) -> None:
    """However the body ends, it is whole; the connection is kept only when it is clean."""

    async def main() -> None:
        async with scripted(*script) as server, client_of(server.url) as client:
            assert await fetch(client) == (200, b"abc")
            await until(lambda: client.idle == kept)
            assert await fetch(client) == (200, b"abc")
            assert server.connections == (1 if kept else 2)

    run(main())


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body(status: int) -> None:
    """204 and 304 end with their head."""

    async def main() -> None:
        async with scripted(b"HTTP/1.1 %d X\r\n\r\n" % status) as server, client_of(server.url) as client:
            assert await fetch(client) == (status, b"")
            assert await fetch(client) == (status, b"")

    run(main())


def test_head_requests_have_no_body() -> None:
    """The content-length of a HEAD answer announces nothing."""

    async def main() -> None:
        async with scripted(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n") as server, client_of(server.url) as client:
            assert await fetch(client, "HEAD", b"") == (200, b"")

    run(main())


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        pytest.param([b"garbage\r\n\r\n"], "not valid HTTP", id="garbage"),
        pytest.param([b"HTTP/1.1 200 OK\r\nx: " + b"a" * 300_000], "head is too large", id="endless-head"),
        pytest.param([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab", CLOSE], "closed before", id="cut-body"),
        pytest.param([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab", RESET], "closed before", id="reset-body"),
        pytest.param([STREAM_HEAD + b"5\r\nab", CLOSE], "closed before", id="half-a-chunk"),
        pytest.param([STREAM_HEAD + chunk(b"ab"), CLOSE], "closed before", id="no-final-chunk"),
        pytest.param([STREAM_HEAD + b"zz\r\n"], "not valid HTTP", id="bad-chunk-size"),
        pytest.param([CLOSE], "closed before", id="no-answer"),
        pytest.param(
            [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n"],
            "not valid",
            id="two-framings",
        ),
    ],
)
def test_broken_answers_raise_and_leave_nothing(script: list[Step], problem: str) -> None:
    """Whatever the server does wrong is UpstreamBroken, the connection is gone, the next request is fine."""

    async def main() -> None:
        async with scripted(scripts=[script, [ok(b"fine")]]) as server, client_of(server.url) as client:
            with pytest.raises(UpstreamBroken, match=problem):
                await fetch(client)
            assert (client.busy, client.idle) == (0, 0)
            assert await fetch(client) == (200, b"fine")
            await until(lambda: server.open == 1)

    run(main())


@pytest.mark.parametrize(
    ("script", "phase"),
    [
        pytest.param([STALL], "first_byte", id="no-head"),
        pytest.param([STREAM_HEAD, chunk(b"a"), STALL], "silence", id="silent-stream"),
    ],
)
def test_silence_is_a_timeout(script: list[Step], phase: str) -> None:
    """A server that stops talking is given up on, and the phase is named."""

    async def main() -> None:
        async with scripted(scripts=[script, [ok(b"fine")]]) as server, client_of(server.url, QUICK) as client:
            with pytest.raises(UpstreamTimeout) as caught:
                await fetch(client)
            assert caught.value.phase == phase
            client.timeouts = Timeouts()
            assert await fetch(client) == (200, b"fine")
            await until(lambda: server.open == 1)

    run(main())


def test_a_slow_drip_is_no_timeout() -> None:
    """As long as something comes, silence is counted anew; the whole may take longer than the limit."""
    drips: list[Step] = [STREAM_HEAD]

    async def main() -> bytes:
        gates = [asyncio.Event() for _ in range(5)]
        for gate in gates:
            drips.extend([gate, chunk(b"x")])
        patient = Timeouts(first_byte_s=0.2, silence_s=0.2)
        async with scripted(*drips, STREAM_END) as server, client_of(server.url, patient) as client:
            reply = await client.request("POST", "/x")
            for gate in gates:
                await asyncio.sleep(0.045)
                gate.set()
            return await reply.read()

    assert run(main()) == b"xxxxx"


def test_a_kept_connection_the_server_closed_is_replaced() -> None:
    """A server that drops the kept connection just as it is used again costs the caller nothing."""

    async def main() -> None:
        scripts: list[list[Step]] = [[ok(b"1")], [CLOSE], [ok(b"2")]]
        async with scripted(scripts=scripts) as server, client_of(server.url) as client:
            assert await fetch(client) == (200, b"1")
            assert await fetch(client) == (200, b"2")
            assert (len(server.requests), server.connections) == (3, 2)

    run(main())


def test_giving_an_answer_up_closes_its_connection() -> None:
    """`close` in the middle of a stream ends it on both sides."""

    async def main() -> None:
        async with scripted(STREAM_HEAD, chunk(b"a"), STALL) as server, client_of(server.url) as client:
            reply = await client.request("POST", "/x")
            assert await reply.__anext__() == b"a"
            reply.close()
            assert (client.busy, client.idle) == (0, 0)
            await until(lambda: server.open == 0)

    run(main())


def test_cancelling_a_request_closes_its_connection() -> None:
    """A caller that is cancelled while it waits for the head leaves nothing behind."""

    async def main() -> None:
        async with scripted(STALL) as server, client_of(server.url) as client:
            task = asyncio.create_task(fetch(client))
            await until(lambda: server.requests)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert client.busy == 0
            await until(lambda: server.open == 0)

    run(main())


def test_above_its_connections_requests_wait() -> None:
    """The pool never opens more than its limit, and everybody is served."""

    async def main() -> None:
        async with scripted(ok(b"hi")) as server, client_of(server.url, connections=2) as client:
            answers = await asyncio.gather(*(fetch(client) for _ in range(20)))
            assert set(answers) == {(200, b"hi")}
            assert server.connections <= 2

    run(main())


def test_warm_connections_are_used_first() -> None:
    """Connections opened ahead are those the first requests use; no more than allowed are opened."""

    async def main() -> None:
        async with scripted(ok(b"x")) as server, client_of(server.url, connections=3) as client:
            await client.warm(10)
            await client.warm(2)
            assert (client.idle, client.busy) == (3, 0)
            assert [await fetch(client) for _ in range(3)] == [(200, b"x")] * 3
            assert server.connections == 3

    run(main())


def test_warming_says_what_is_wrong() -> None:
    """A server that is not there is an error of warming too, and no right to a connection is lost by it."""

    async def main() -> None:
        async with client_of("http://127.0.0.1:1", connections=2) as client:
            for _ in range(3):
                with pytest.raises(UpstreamBroken, match="cannot be reached"):
                    await client.warm(2)
            with pytest.raises(UpstreamBroken, match="cannot be reached"):
                await fetch(client)

    run(main())


def test_a_kept_connection_is_closed_when_nobody_asks_any_more() -> None:
    """An idle connection does not wait for the next request to find out that its time is over."""

    async def main() -> None:
        async with scripted(ok(b"x")) as server, client_of(server.url, idle_s=0.01) as client:
            await fetch(client)
            await until(lambda: client.idle == 0 and server.open == 0)

    run(main())


def test_headers_encoded_once_are_the_same_headers() -> None:
    """What `encode_headers` prepared goes out as the plain headers do."""
    headers = [(b"a", b"b"), (b"c", b"d")]
    assert encode_request("POST", "/", "h", encode_headers(headers)) == encode_request("POST", "/", "h", headers)
    assert encode_headers(headers) == tuple(headers)
    with pytest.raises(ValueError, match="line break"):
        encode_headers([(b"a", b"b\n")])


@pytest.mark.parametrize("target", ["/a b", "/a\r\nx: y", "/\n"])
def test_a_target_that_is_two_is_refused(target: str) -> None:
    """Neither a space nor a line break gets into the request line."""
    with pytest.raises(ValueError, match="request line"):
        encode_request("GET", target, "a", [])


@pytest.mark.parametrize("wait", [False, True])
def test_forwards_every_piece_as_it_arrives(wait: bool) -> None:
    """A taker gets all pieces in order, those that waited before it came too; asked to, we wait between two."""
    pieces = [b"%d" % i for i in range(5)]

    async def main() -> list[bytes]:
        got: list[bytes] = []

        async def pause() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
            got.append(b"|")

        def take(data: bytes) -> Awaitable[None] | None:
            got.append(data)
            return pause() if wait else None

        async with scripted(STREAM_HEAD, *map(chunk, pieces), STREAM_END) as server, client_of(server.url) as client:
            reply = await client.request("POST", "/", [], b"{}")
            await reply.forward(take)
            assert (reply.done, client.busy, client.idle) == (True, 0, 1)
            return got

    got = run(main())
    assert b"".join(got).replace(b"|", b"") == b"01234"
    assert got.count(b"|") == (len(got) - got.count(b"|") if wait else 0)


def test_a_forwarded_body_that_breaks_off_raises() -> None:
    """The end of the connection, and an error of the taker, end the forwarding; nothing is held afterwards."""

    def refuse(_: bytes) -> None:
        raise KeyError

    async def main() -> None:
        for take, error in ((lambda _: None, UpstreamBroken), (refuse, KeyError)):
            async with scripted(STREAM_HEAD, chunk(b"a"), CLOSE) as server, client_of(server.url) as client:
                reply = await client.request("POST", "/", [], b"{}")
                with pytest.raises(error):
                    await reply.forward(take)
                reply.close()
                assert (client.busy, client.idle) == (0, 0)

    run(main())


def test_a_slow_consumer_stops_the_sender() -> None:
    """A body nobody reads is not piled up: reading pauses, and goes on when the consumer does."""
    size = 8 * 1024 * 1024

    async def main() -> None:
        async with scripted(ok(b"x" * size)) as server, client_of(server.url) as client:
            reply = await client.request("POST", "/x")
            await asyncio.sleep(0.03)
            assert not reply.done
            assert len(await reply.read()) == size
            assert client.idle == 1

    run(main())


def test_a_body_above_the_limit_is_refused() -> None:
    """Reading whole is bounded."""

    async def main() -> None:
        async with scripted(ok(b"x" * 1000)) as server, client_of(server.url, body_bytes=999) as client:
            with pytest.raises(UpstreamBroken, match="more than 999 bytes"):
                await fetch(client)

    run(main())


def test_an_unreachable_server_is_named() -> None:
    """Connection refused says which server."""

    async def main() -> None:
        async with scripted() as server:
            url = server.url
        async with client_of(url) as client:
            await fetch(client)

    with pytest.raises(UpstreamBroken, match=r"http://127\.0\.0\.1:\d+ cannot be reached"):
        run(main())


@pytest.mark.parametrize("url", ["", "localhost:80", "ftp://a", "http://", "http://a:x", "http://u@a", "http://a?b"])
def test_a_wrong_base_url_is_refused(url: str) -> None:
    """The message shows what was given and what is wanted."""
    with pytest.raises(ConfigError, match="give one like"):
        HttpClient(url)


@pytest.mark.parametrize("header", [(b"a", b"b\r\nc: d"), (b"a\n", b"b"), (b"a", b"b\rc")])
def test_a_line_break_in_a_header_is_refused(header: tuple[bytes, bytes]) -> None:
    """Nobody can smuggle a second header or request through us."""
    with pytest.raises(ValueError, match="line break"):
        encode_request("GET", "/", "a", [header])


def test_a_connection_closed_in_the_pool_reports_once() -> None:
    """Starting on a closed connection calls on_done once, with the error."""
    done: list[tuple[Exception | None, bool]] = []

    class Watch:
        def on_head(self, status: int, headers: list[tuple[bytes, bytes]]) -> None: ...
        def on_body(self, data: bytes) -> None: ...
        def on_done(self, error: Exception | None, reusable: bool) -> None:
            done.append((error, reusable))

    async def main() -> None:
        async with scripted(ok(b"")) as server:
            connection = await connect("127.0.0.1", server.port)
            connection.abort()
            connection.start(encode_request("GET", "/", "a", []), Watch())
            await asyncio.sleep(0.01)

    run(main())
    assert len(done) == 1
    assert isinstance(done[0][0], ConnectionError)
    assert not done[0][1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, key in the same file."""
    folder = tmp_path_factory.mktemp("tls")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command = ["openssl", "req", "-x509", *key, *subject, "-keyout", str(folder / "key"), "-out", str(folder / "crt")]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    whole = folder / "both.pem"
    whole.write_bytes((folder / "key").read_bytes() + (folder / "crt").read_bytes())
    return whole


def test_speaks_tls_and_checks_the_certificate(certificate: Path) -> None:
    """With the right authority it works over TLS; without it, the connection is refused."""

    async def main() -> tuple[int, bytes]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        trusting = ssl.create_default_context(cafile=certificate)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await reader.readuntil(b"{}")
                    writer.write(ok(b"secret"))
            writer.close()

        listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        url = f"https://localhost:{listener.sockets[0].getsockname()[1]}"
        client, doubting = HttpClient(url, tls=trusting), HttpClient(url)
        with pytest.raises(UpstreamBroken, match="cannot be reached"):
            await fetch(doubting)
        answers = [await fetch(client) for _ in range(2)]
        await client.close()
        await doubting.close()
        listener.close()
        await asyncio.sleep(0.01)
        assert answers[0] == answers[1]
        return answers[0]

    assert run(main()) == (200, b"secret")


def test_two_ends_of_our_own_agree() -> None:
    """The client talks to our server, streamed and plain, many at once."""

    async def handler(request: HttpRequest) -> Reply:
        async def body() -> AsyncIterator[bytes]:
            for byte in request.body:
                yield bytes([byte])
                await asyncio.sleep(0)

        return Reply(200, [], body() if len(request.body) % 2 else request.body)

    async def main() -> None:
        server = await serve(handler, "127.0.0.1", 0)
        async with client_of(f"http://127.0.0.1:{server.port}", connections=8) as client:
            bodies = [b"z" * n for n in range(1, 60)]
            answers = await asyncio.gather(*(fetch(client, body=body) for body in bodies))
            assert [body for _, body in answers] == bodies
        await server.close(1.0)
        assert answer(404).startswith(b"HTTP/1.1 404")

    run(main())
