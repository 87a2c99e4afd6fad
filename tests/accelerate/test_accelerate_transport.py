"""The transports under httpx and httpx2 clients, on real sockets: what passes, what is released, what is raised."""

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.builders import COMPLETION, EVENTS, JSON, PLAIN, STREAM
from tests.patience import PATIENCE_S
from tests.wire.builders import CLOSE, RESET, STALL, STREAM_END, STREAM_HEAD, ScriptedServer, chunk, ok, run, scripted
from tests.wire.builders import answer as wire_answer

from paceline.accelerate.cache import CachePolicy
from paceline.accelerate.policy import Policy
from paceline.accelerate.record import CallRecord
from paceline.accelerate.transport import AsyncTransport, TransportSettings
from paceline.accelerate.transport.binding import binding_of
from paceline.errors import ConfigError

httpx = pytest.importorskip("httpx")
httpx2 = pytest.importorskip("httpx2")

OFF = Policy()
SHARING = Policy(cache=CachePolicy(enabled=True), single_flight=True)
CHAT = "/v1/chat/completions"
CALL = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
both_modules = pytest.mark.parametrize("module", [httpx, httpx2], ids=["httpx", "httpx2"])
both_policies = pytest.mark.parametrize("policy", [OFF, SHARING], ids=["off", "sharing"])


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


async def settled(transport: AsyncTransport, server: ScriptedServer) -> None:
    """Nothing is held but connections kept for the next call."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            (state,) = transport.state().values()
            held = sum(state.get(name, 0) for name in ("in_flight", "waiting", "flights", "upstream_busy"))
            if held == 0 and server.open == state["upstream_idle"]:
                return
            gc.collect()  # what is forgotten may hang in a cycle
            await asyncio.sleep(0.001)


# --- what passes ---------------------------------------------------------------------------------------------------


@both_modules
@both_policies
def test_an_answer_is_what_the_modules_own_transport_gives(module: Any, policy: Policy) -> None:
    """Status, body, parsed content and elapsed time; asked twice."""

    async def main() -> None:
        async with scripted(*PLAIN) as server:
            async with module.AsyncClient(base_url=server.url) as own:
                theirs = await own.post(CHAT, json=CALL)
            async with module.AsyncClient(base_url=server.url, transport=AsyncTransport(policy)) as client:
                for _ in range(2):
                    ours = await client.post(CHAT, json=CALL)
                    assert (ours.status_code, ours.content, ours.json()) == (200, theirs.content, theirs.json())
                    assert ours.http_version == theirs.http_version
                    assert ours.reason_phrase == theirs.reason_phrase
                    assert ours.elapsed.total_seconds() > 0
                    assert isinstance(ours, module.Response)
            assert len(server.requests) == (3 if policy is OFF else 2)

    run(main())


def test_without_a_policy_the_request_passes_byte_for_byte() -> None:
    """Only our own headers are taken off; nothing is read, so nonsense passes too."""

    async def main() -> None:
        async with scripted(*PLAIN) as server:
            headers = {
                "X-Custom": "Yes",
                "Authorization": "Bearer sk",
                "x-paceline-step": "plan",
                "Accept-Encoding": "br",
            }
            async with httpx.AsyncClient(transport=AsyncTransport()) as client:
                await client.post(f"{server.url}{CHAT}?a=%2F&b=ü", content=b'{"model": [}\x00', headers=headers)
            head, _, body = server.requests[0].partition(b"\r\n\r\n")
            assert body == b'{"model": [}\x00'
            assert head.startswith(b"POST /v1/chat/completions?a=%2F&b=%C3%BC HTTP/1.1\r\n")
            lines = {line.lower() for line in head.split(b"\r\n")}
            assert {b"x-custom: yes", b"authorization: bearer sk", b"accept-encoding: br"} <= lines
            assert b"paceline" not in head

    run(main())


@both_policies
def test_calls_that_are_no_model_calls_pass(policy: Policy) -> None:
    """GET, HEAD, an empty answer, a redirect that the client follows, a compressed body."""

    async def main() -> None:
        gzipped = bytes.fromhex("1f8b08000000000000ffcb48cdc9c907008 6a6103605000000".replace(" ", ""))
        scripts: Any = [
            [ok(b"models")],
            [ok(b"").replace(b"content-length: 0", b"content-length: 6")],
            [wire_answer(204).replace(b"content-length: 0\r\n", b"")],
            [wire_answer(302, b"", b"location: /there")],
            [ok(b"there")],
            [ok(gzipped, b"content-encoding: gzip")],
        ]
        async with scripted(scripts=scripts) as server:
            transport = AsyncTransport(policy)
            async with httpx.AsyncClient(base_url=server.url, transport=transport, follow_redirects=True) as client:
                assert (await client.get("/v1/models")).text == "models"
                assert (await client.head("/v1/models")).headers["content-length"] == "6"
                assert (await client.delete("/v1/files/1")).status_code == 204
                redirected = await client.get("/here")
                assert redirected.text == "there"
                assert redirected.url.path == "/there"
                assert (await client.get("/gzip")).text == "hello"

    run(main())


@both_modules
@both_policies
def test_uploads_pass_through_the_modules_own_transport(module: Any, policy: Policy) -> None:
    """Bodies that are not there at once: a multipart form, and a generator; without our headers."""

    async def main() -> None:
        async with scripted(ok(b"{}", JSON)) as server:

            async def pieces() -> Any:
                yield b"one"
                yield b"two"

            async with module.AsyncClient(transport=AsyncTransport(policy), base_url=server.url) as client:
                files = {"file": ("a.jsonl", b"x" * 100)}
                sent = await client.post("/v1/files", files=files, headers={"x-paceline-step": "upload"})
                assert sent.json() == {}
                assert (await client.post("/v1/audio", content=pieces(), headers={"content-length": "6"})).json() == {}
            assert b'filename="a.jsonl"' in server.requests[0]
            assert b"paceline" not in server.requests[0]
            assert server.requests[1].endswith(b"onetwo")

    run(main())


def test_a_host_header_of_the_users_own_is_kept() -> None:
    """Our wire writes the URL's host, so such a request goes through httpx."""

    async def main() -> None:
        async with scripted(*PLAIN) as server:
            async with httpx.AsyncClient(transport=AsyncTransport(SHARING)) as client:
                await client.post(server.url + CHAT, json=CALL, headers={"host": "models.example"})
            assert b"\r\nhost: models.example\r\n" in server.requests[0].lower()

    run(main())


@both_modules
@both_policies
def test_a_stream_comes_piece_by_piece(module: Any, policy: Policy) -> None:
    """The first event is here while the server still holds the second back; a replay has the same bytes."""

    async def main() -> None:
        more = asyncio.Event()
        script: Any = [STREAM_HEAD, chunk(EVENTS[0]), more, *(chunk(event) for event in EVENTS[1:]), STREAM_END]
        async with scripted(*script) as server:
            transport = AsyncTransport(policy)
            async with module.AsyncClient(base_url=server.url, transport=transport) as client:
                async with client.stream("POST", CHAT, json={**CALL, "stream": True}) as response:
                    pieces = response.aiter_bytes()
                    assert await anext(pieces) == EVENTS[0]
                    more.set()
                    assert b"".join([piece async for piece in pieces]) == b"".join(EVENTS[1:])
                async with client.stream("POST", CHAT, json={**CALL, "stream": True}) as response:
                    assert await response.aread() == b"".join(EVENTS)
                await settled(transport, server)
            assert len(server.requests) == (2 if policy is OFF else 1)

    run(main())


def test_each_server_has_its_own_answers() -> None:
    """The same call to two servers is two calls, whatever they share in memory."""

    async def main() -> None:
        async with scripted(ok(COMPLETION, JSON)) as first, scripted(ok(COMPLETION[:-1] + b" }", JSON)) as second:
            async with httpx.AsyncClient(transport=AsyncTransport(SHARING)) as client:
                for _ in range(2):
                    assert (await client.post(first.url + CHAT, json=CALL)).content == COMPLETION
                    assert (await client.post(second.url + CHAT, json=CALL)).content != COMPLETION
            assert (len(first.requests), len(second.requests)) == (1, 1)

    run(main())


def test_tenants_named_by_header_share_nothing() -> None:
    """One key, two tenants: an application that serves several says whose call it is."""

    async def main() -> None:
        async with scripted(*PLAIN) as server:
            async with httpx.AsyncClient(transport=AsyncTransport(SHARING), base_url=server.url) as client:
                for tenant in ("a", "b", "a", "b"):
                    await client.post(CHAT, json=CALL, headers={"x-paceline-tenant": tenant})
            assert len(server.requests) == 2
            assert b"paceline" not in b"".join(server.requests)

    run(main())


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


@pytest.mark.slow
@both_modules
@both_policies
def test_tls_is_checked_as_the_module_checks_it(module: Any, policy: Policy, certificate: Path) -> None:
    """By its own roots, by a context of the user's, or not at all."""

    async def main() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await reader.readuntil(b"hi")
                writer.write(ok(COMPLETION, JSON))
            await asyncio.sleep(0)
            writer.close()

        listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        url = f"https://localhost:{listener.sockets[0].getsockname()[1]}"
        for verify in (True, False, ssl.create_default_context(cafile=certificate)):
            transport = AsyncTransport(policy, settings=TransportSettings(verify=verify))
            async with module.AsyncClient(transport=transport) as client:
                if verify is True:
                    with pytest.raises(module.ConnectError, match="certificate"):
                        await client.post(url + CHAT, json=CALL)
                else:
                    assert (await client.post(url + CHAT, json=CALL)).content == COMPLETION
        listener.close()
        await asyncio.sleep(0.01)

    run(main())


# --- what is released ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@both_modules
@both_policies
@pytest.mark.parametrize("how", ["closed", "dropped", "cancelled"])
def test_a_half_read_stream_releases_everything(module: Any, policy: Policy, how: str) -> None:
    """Closed by its user, forgotten by its user, or its user cancelled while waiting for the next piece."""

    async def main() -> None:
        async with scripted(STREAM_HEAD, chunk(EVENTS[0]), STALL) as server:
            transport = AsyncTransport(policy)
            async with module.AsyncClient(base_url=server.url, transport=transport) as client:

                async def read(*, on: bool) -> None:
                    request = client.build_request("POST", CHAT, json={**CALL, "stream": True})
                    response = await client.send(request, stream=True)
                    pieces = response.aiter_bytes()
                    await anext(pieces)
                    if on:
                        await anext(pieces)
                    if how == "closed":
                        await response.aclose()

                task = asyncio.create_task(read(on=how == "cancelled"))
                if how == "cancelled":
                    while not server.requests:  # noqa: ASYNC110 - the server has no event for it
                        await asyncio.sleep(0.001)
                    await asyncio.sleep(0.01)
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                del task
                await settled(transport, server)

    run(main())


def test_one_caller_leaving_does_not_end_the_call_of_the_others() -> None:
    """The first of three equal calls is cancelled, the second has no patience; the third gets the answer."""

    async def main() -> None:
        go = asyncio.Event()
        async with scripted(go, *PLAIN) as server:
            transport = AsyncTransport(SHARING)
            async with httpx.AsyncClient(base_url=server.url, transport=transport, timeout=5.0) as client:
                first = asyncio.create_task(client.post(CHAT, json=CALL))
                while not server.requests:  # noqa: ASYNC110 - the server has no event for it
                    await asyncio.sleep(0.001)
                third = asyncio.create_task(client.post(CHAT, json=CALL))
                with pytest.raises(httpx.ReadTimeout):
                    await client.post(CHAT, json=CALL, timeout=0.02)
                first.cancel()
                await asyncio.gather(first, return_exceptions=True)
                go.set()
                assert (await third).content == COMPLETION
                await settled(transport, server)
            assert len(server.requests) == 1

    run(main())


def test_a_transport_works_in_one_loop_after_the_other() -> None:
    """As applications do that call `asyncio.run` for each job; closing the client and asking again works too."""
    transport = AsyncTransport(SHARING)

    async def main() -> None:
        async with scripted(*PLAIN) as server:
            for _ in range(2):
                async with httpx.AsyncClient(base_url=server.url, transport=transport) as client:
                    assert (await client.post(CHAT, json=CALL)).content == COMPLETION

    run(main())
    run(main())


def test_servers_are_forgotten_when_there_are_too_many() -> None:
    """The least recently used one that has nothing under way is closed; when all are busy, the pool is full."""

    async def main() -> None:
        settings = TransportSettings(servers=2)
        async with scripted(*PLAIN) as a, scripted(*PLAIN) as b, scripted(STALL) as c, scripted(STALL) as d:
            transport = AsyncTransport(settings=settings)
            async with httpx.AsyncClient(transport=transport) as client:
                for server in (a, b, a):
                    await client.get(server.url)
                waiting = [asyncio.create_task(client.get(server.url)) for server in (c, d)]
                while not (c.requests and d.requests):  # noqa: ASYNC110 - the server has no event for it
                    await asyncio.sleep(0.001)
                assert list(transport.state()) == [c.url, d.url]
                with pytest.raises(httpx.PoolTimeout, match=r"TransportSettings\.servers"):
                    await client.get(a.url)
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)

    run(main())


def test_the_listener_hears_of_every_call_once() -> None:
    """With its cost; a policy is not needed for it."""
    heard: list[CallRecord] = []

    async def main() -> None:
        async with scripted(*PLAIN) as server:
            transport = AsyncTransport(listener=heard.append)
            async with httpx.AsyncClient(base_url=server.url, transport=transport) as client:
                await client.post(CHAT, json=CALL)
                await client.get("/v1/models")

    run(main())
    told = [(record.method, record.outcome, record.status, (record.cost_usd or 0) > 0) for record in heard]
    assert told == [("POST", "bypass", 200, True), ("GET", "bypass", 200, False)]


# --- what is raised ------------------------------------------------------------------------------------------------


@pytest.fixture
def dead_url() -> str:
    """A port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.mark.slow
@both_modules
@both_policies
def test_failures_are_the_modules_own_exceptions(module: Any, policy: Policy, dead_url: str) -> None:
    """Nobody there, no TLS in time, silence, a cut before and in the answer, an answer that is no HTTP."""

    async def main() -> None:
        cut_body = ok(COMPLETION, JSON)[:-10]
        async with (
            scripted(STALL) as silent,
            scripted(RESET) as reset,
            scripted(cut_body, CLOSE) as cut,
            scripted(b"HELLO\r\n\r\n", CLOSE) as garbage,
            module.AsyncClient(transport=AsyncTransport(policy)) as client,
        ):
            limits = module.Timeout(0.05, connect=0.05)
            for url, kind in [
                (dead_url, module.ConnectError),
                (silent.url.replace("http:", "https:"), module.ConnectTimeout),
                (silent.url, module.ReadTimeout),
                (reset.url, module.RemoteProtocolError),
                (cut.url, module.RemoteProtocolError),
                (garbage.url, module.RemoteProtocolError),
            ]:
                with pytest.raises(module.TransportError) as caught:
                    await client.post(url + CHAT, json=CALL, timeout=limits)
                assert caught.type is kind, url
                assert str(caught.value).startswith(url)
                assert caught.value.request.method == "POST"
            for url in ("ftp://127.0.0.1/", "no-url"):
                with pytest.raises(module.UnsupportedProtocol):
                    await client.post(url, json=CALL)
            with pytest.raises(module.LocalProtocolError):
                await client.post(silent.url, json=CALL, headers={"x-two": b"one\r\nmore: two"})

    run(main())


@both_policies
def test_a_stream_that_breaks_off_or_falls_silent_raises_where_it_does(policy: Policy) -> None:
    """What came before it has been read."""

    async def main() -> None:
        async with (
            scripted(STREAM_HEAD, chunk(EVENTS[0]), RESET) as cut,
            scripted(STREAM_HEAD, chunk(EVENTS[0]), STALL) as silent,
        ):
            transport = AsyncTransport(policy)
            async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(PATIENCE_S, read=0.3)) as client:
                for server, kind in ((cut, httpx.RemoteProtocolError), (silent, httpx.ReadTimeout)):
                    async with client.stream("POST", server.url + CHAT, json={**CALL, "stream": True}) as response:
                        pieces = response.aiter_bytes()
                        assert await anext(pieces) == EVENTS[0]
                        with pytest.raises(kind):
                            await anext(pieces)

    run(main())


def test_everyone_who_joined_a_failed_call_gets_the_exception() -> None:
    """Not the reply that stands for it towards callers over HTTP; and the provider's own 502 stays an answer."""

    async def main() -> None:
        go = asyncio.Event()
        script: Any = [[go, RESET], [wire_answer(502, b"bad gateway")]]
        async with scripted(scripts=script) as server:
            transport = AsyncTransport(SHARING)
            async with httpx.AsyncClient(base_url=server.url, transport=transport) as client:
                calls = [asyncio.create_task(client.post(CHAT, json=CALL)) for _ in range(5)]
                while not server.requests:  # noqa: ASYNC110 - the server has no event for it
                    await asyncio.sleep(0.001)
                go.set()
                failures = await asyncio.gather(*calls, return_exceptions=True)
                assert [type(failure) for failure in failures] == [httpx.RemoteProtocolError] * 5
                assert len(server.requests) == 1
                refused = await client.post(CHAT, json=CALL)
                assert (refused.status_code, refused.text) == (502, "bad gateway")
                await settled(transport, server)

    run(main())


def test_a_request_of_something_else_is_refused() -> None:
    """With what to install."""
    with pytest.raises(ConfigError, match=r"paceline\[transport\]"):
        binding_of(object())


# --- proxies -------------------------------------------------------------------------------------------------------


@both_modules
@both_policies
def test_a_proxy_is_reached_by_the_modules_own_transport(
    module: Any, policy: Policy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From the environment, said once without its password; what the policy says holds all the same."""

    async def main() -> None:
        async with scripted(*PLAIN) as proxy:
            monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//user:secret@"))
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            url = f"http://{module.__name__}-{id(policy)}.example"
            with caplog.at_level(logging.WARNING, "paceline.accelerate"):
                async with module.AsyncClient(transport=AsyncTransport(policy)) as client:
                    for _ in range(2):
                        assert (await client.post(url + CHAT, json=CALL)).content == COMPLETION
            assert proxy.requests[0].startswith(f"POST {url}{CHAT} HTTP/1.1".encode())
            assert len(proxy.requests) == (2 if policy is OFF else 1)
            (said,) = caplog.messages
            assert url in said
            assert "secret" not in said

    run(main())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "kind"),
    [([STALL], "ReadTimeout"), ([RESET], "ReadError"), ([STREAM_HEAD, chunk(EVENTS[0]), RESET], "RemoteProtocolError")],
    ids=["silent", "reset", "cut"],
)
def test_failures_behind_a_proxy_are_the_modules_own_too(script: list[Any], kind: str) -> None:
    """With a policy they pass the engine as ours and come out as the module's, nothing held."""

    async def main() -> None:
        async with scripted(*script) as proxy:
            transport = AsyncTransport(SHARING, settings=TransportSettings(proxy=proxy.url))
            async with httpx.AsyncClient(transport=transport, timeout=httpx.Timeout(PATIENCE_S, read=0.3)) as client:
                with pytest.raises(httpx.TransportError) as caught:
                    async with client.stream(
                        "POST", "http://models.example" + CHAT, json={**CALL, "stream": True}
                    ) as r:
                        await r.aread()
                assert caught.type.__name__ in (kind, "RemoteProtocolError")
                (state,) = transport.state().values()
                while state["in_flight"] + state["flights"] + state["upstream_busy"]:
                    await asyncio.sleep(0.001)
                    (state,) = transport.state().values()

    run(main())


@both_policies
def test_a_proxy_that_is_not_there_is_a_connection_not_made(policy: Policy, dead_url: str) -> None:
    """The exception says so, with a policy as without."""

    async def main() -> None:
        transport = AsyncTransport(policy, settings=TransportSettings(proxy=dead_url))
        async with httpx.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx.ConnectError):
                await client.post("http://models.example" + CHAT, json=CALL)

    run(main())


def test_streams_behind_a_proxy_are_shared_and_kept() -> None:
    """A stream through the bridge, asked twice at once and once more."""

    async def main() -> None:
        async with scripted(*STREAM) as proxy:
            transport = AsyncTransport(SHARING, settings=TransportSettings(proxy=proxy.url))
            async with httpx.AsyncClient(transport=transport, base_url="http://models.example") as client:

                async def read() -> bytes:
                    async with client.stream("POST", CHAT, json={**CALL, "stream": True}) as response:
                        return bytes(await response.aread())

                assert {*await asyncio.gather(read(), read()), await read()} == {b"".join(EVENTS)}
            assert len(proxy.requests) == 1

    run(main())
