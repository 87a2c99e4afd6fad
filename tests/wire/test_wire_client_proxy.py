"""The client behind a proxy, against a real proxy and real servers; and how a client is chosen."""

import asyncio
import contextlib
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.wire.builders import CLOSE, STALL, STREAM_END, STREAM_HEAD, Step, answer, chunk, ok, run, scripted, until

from paceline.errors import ConfigError, PacelineError, UpstreamBroken, UpstreamTimeout
from paceline.wire.client import ClientLimits, HttpClient, Timeouts
from paceline.wire.clients import Client, client_for, proxy_for
from paceline.wire.library_client import LibraryClient, through_httpx

httpx = pytest.importorskip("httpx")


class Proxy:
    """A forward proxy: absolute targets are fetched, CONNECT becomes a tunnel. `seen`: the request lines."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await reader.readuntil(b"\r\n\r\n")
            line = head.split(b"\r\n")[0]
            self.seen.append(line)
            method, target, _ = line.split(b" ")
            if method == b"CONNECT":
                host, _, port = target.decode().partition(":")
                rest = b""
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            else:
                host, _, port = target.decode().split("/")[2].partition(":")
                rest = head.replace(target, b"/" + target.split(b"/", 3)[3], 1)
            there, back = await asyncio.open_connection(host, int(port))
            back.write(rest)
            await asyncio.gather(self.pump(reader, back), self.pump(there, writer))
        writer.close()

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()


@contextlib.asynccontextmanager
async def proxied(url: str, timeouts: Timeouts | None = None, **options: object) -> AsyncIterator[tuple[Client, Proxy]]:
    proxy = Proxy()
    listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    limits = ClientLimits(body_bytes=1000)
    client = client_for(url, proxy=proxy.url, timeouts=timeouts, limits=limits, **options)  # type: ignore[arg-type]
    try:
        yield client, proxy
    finally:
        await client.close()
        listener.close()
        await until(lambda: len(asyncio.all_tasks()) == 1)


async def fetch(client: Client, body: bytes = b"{}") -> tuple[int, bytes]:
    reply = await client.request("POST", "/v1/x?y=1", [(b"x-a", b"1"), (b"authorization", b"k")], body)
    return reply.status, await reply.read()


def test_asks_through_the_proxy_and_adds_nothing() -> None:
    """The request goes to the proxy, arrives with our headers and no others, and the answer's bytes are as sent."""

    async def main() -> None:
        squeezed = ok(b"\x1f\x8bnot unzipped", b"content-encoding: gzip", b"X-B: 2")
        async with scripted(squeezed) as server, proxied(server.url) as (client, proxy):
            reply = await client.request("POST", "/v1/x?y=1", [(b"x-a", b"1")], b"{}")
            assert (reply.status, reply.header(b"x-b")) == (200, b"2")
            assert await reply.read() == b"\x1f\x8bnot unzipped"
            assert reply.done
            assert proxy.seen == [b"POST " + server.url.encode() + b"/v1/x?y=1 HTTP/1.1"]
            names = [
                line.split(b":")[0].lower() for line in server.requests[0].split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
            ]
            assert sorted(names) == [b"content-length", b"host", b"x-a"]
            assert client.busy == 0

    run(main())


def test_streams_pieces_as_they_come() -> None:
    """A stream is not gathered: the first piece is there before the second is sent."""

    async def main() -> None:
        go_on = asyncio.Event()
        script: list[Step] = [STREAM_HEAD, chunk(b"a"), go_on, chunk(b"b"), STREAM_END]
        async with scripted(*script) as server, proxied(server.url) as (client, _):
            reply = await client.request("POST", "/", [], b"{}")
            assert await reply.__anext__() == b"a"
            go_on.set()
            got: list[bytes] = []
            await reply.forward(got.append)
            assert got == [b"b"]

    run(main())


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ([CLOSE], "disconnected"),
        ([b"garbage\r\n\r\n"], "illegal status line"),
        ([STREAM_HEAD, chunk(b"a"), CLOSE], "closed connection"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc", CLOSE], "closed connection"),
        ([ok(b"x" * 2000)], "more than 1000 bytes"),
    ],
)
def test_broken_answers_raise_and_leave_nothing(script: list[bytes | str], problem: str) -> None:
    """As with the raw client: UpstreamBroken, and nothing is held."""

    async def main() -> None:
        async with scripted(*script) as server, proxied(server.url) as (client, _):
            with pytest.raises(UpstreamBroken, match=problem):
                await fetch(client)
            assert client.busy == 0

    run(main())


@pytest.mark.parametrize(("script", "phase"), [([STALL], "first_byte"), ([STREAM_HEAD, chunk(b"a"), STALL], "silence")])
def test_silence_is_a_timeout(script: list[bytes | str], phase: str) -> None:
    """Both phases have a limit of their own."""

    async def main() -> None:
        timeouts = Timeouts(**{"first_byte_s": 5.0, "silence_s": 5.0, f"{phase}_s": 0.02})
        async with scripted(*script) as server, proxied(server.url, timeouts) as (client, _):
            with pytest.raises(UpstreamTimeout) as caught:
                await fetch(client)
            assert (caught.value.phase, caught.value.limit_s, client.busy) == (phase, 0.02, 0)

    run(main())


def test_an_answer_given_up_is_closed() -> None:
    """`close` in the middle of a stream ends the exchange."""

    async def main() -> None:
        async with scripted(STREAM_HEAD, chunk(b"a"), STALL) as server, proxied(server.url) as (client, _):
            reply = await client.request("POST", "/", [], b"{}")
            assert await reply.__anext__() == b"a"
            reply.close()
            reply.close()
            assert (reply.done, client.busy) == (True, 0)
            await until(lambda: server.open == 0)

    run(main())


def test_a_tunnel_for_tls_checks_the_certificate(certificate: Path) -> None:
    """https goes through CONNECT: the proxy sees a host and a port, the certificate is the server's."""

    async def main() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
                while True:
                    await reader.readuntil(b"{}")
                    writer.write(ok(b"secret"))
            writer.close()

        listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        port = listener.sockets[0].getsockname()[1]
        trusting = ssl.create_default_context(cafile=certificate)
        async with proxied(f"https://localhost:{port}", tls=trusting) as (client, proxy):
            assert [await fetch(client), await fetch(client)] == [(200, b"secret")] * 2
            assert proxy.seen == [b"CONNECT localhost:%d HTTP/1.1" % port]
        async with proxied(f"https://localhost:{port}") as (client, _):
            with pytest.raises(UpstreamBroken, match="cannot be reached"):
                await fetch(client)
        listener.close()

    run(main())


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost, key in the same file."""
    both = tmp_path_factory.mktemp("tls") / "both.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command = ["openssl", "req", "-x509", *key, *subject, "-keyout", str(both) + ".key", "-out", str(both) + ".crt"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    both.write_bytes(Path(f"{both}.key").read_bytes() + Path(f"{both}.crt").read_bytes())
    return both


def test_a_proxy_that_is_not_there_is_named() -> None:
    """The error says which server could not be reached."""

    async def main() -> None:
        client = client_for("http://127.0.0.1:1", proxy="http://127.0.0.1:2")
        with pytest.raises(UpstreamBroken, match=r"http://127\.0\.0\.1:1 cannot be reached"):
            await fetch(client)
        await client.close()

    run(main())


def test_a_proxy_that_refuses_is_passed_on() -> None:
    """What a proxy answers to a plain request is an answer like any other (407 among them)."""

    async def main() -> None:
        async with scripted(answer(407, b"who are you")) as proxy:
            client = client_for("http://127.0.0.1:1", proxy=proxy.url)
            assert await fetch(client) == (407, b"who are you")
            await client.close()

    run(main())


def test_the_raw_client_where_it_reaches() -> None:
    """No proxy and no HTTP/2: our own client."""
    assert isinstance(client_for("https://api.openai.com"), HttpClient)
    assert isinstance(client_for("https://api.openai.com", proxy="http://p:3128"), LibraryClient)


@pytest.mark.parametrize("proxy", ["ftp://p:1", "p:1", "http://p:x"])
def test_a_wrong_proxy_is_refused(proxy: str) -> None:
    """One clear sentence, before anything is asked."""
    with pytest.raises(ConfigError, match="not a proxy's URL"):
        client_for("http://a", proxy=proxy)


def test_every_error_of_the_library_has_a_home() -> None:
    """Whatever httpx may raise while asking becomes an error of ours."""
    client = through_httpx("http://a")
    request = httpx.Request("GET", "http://a")

    def kinds(base: type[Exception]) -> list[type[Exception]]:
        return [base, *(k for sub in base.__subclasses__() for k in kinds(sub))]

    for kind in [*kinds(httpx.TransportError), httpx.InvalidURL]:
        error = kind("x") if kind is httpx.InvalidURL else kind("x", request=request)
        assert isinstance(client.translate(error), PacelineError), kind


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://a", None),
        ({"HTTPS_PROXY": "http://p"}, "https://a", "http://p"),
        ({"HTTPS_PROXY": "http://p"}, "http://a", None),
        ({"https_proxy": "http://q", "HTTPS_PROXY": "http://p"}, "https://a", "http://q"),
        ({"ALL_PROXY": "socks5://p"}, "http://a", "socks5://p"),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "b,a.com"}, "https://x.a.com:8443/v1", None),
        ({"HTTPS_PROXY": "http://p", "NO_PROXY": "b,a.com"}, "https://xa.com", "http://p"),
        ({"HTTP_PROXY": "http://p", "NO_PROXY": "*"}, "http://a", None),
        ({"HTTPS_PROXY": ""}, "https://a", None),
    ],
)
def test_reads_the_usual_variables(environment: dict[str, str], url: str, proxy: str | None) -> None:
    """HTTPS_PROXY and its kin mean what they mean everywhere."""
    assert proxy_for(url, environment) == proxy
