"""The gateway before a provider that is asked over HTTP/2."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.gateway.builders import CHAT, COMPLETION, EVENTS, SHARING
from tests.gateway.serving import serving
from tests.wire.builders import run, until
from tests.wire.h2_server import CUT, EVENTS_200, JSON_200, STALL, H2Server, Step, authority_pem, h2_serving, trusting

from paceline.accelerate.engine import Engine
from paceline.errors import ConfigError
from paceline.gateway.config import Sources
from paceline.gateway.service import Gateway
from paceline.wire.client import HttpClient
from paceline.wire.clients import client_for
from paceline.wire.server import serve

CALL = b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}'
STREAMED = CALL[:-1] + b', "stream": true}'


@contextlib.asynccontextmanager
async def between(*script: Step) -> AsyncIterator[tuple[HttpClient, H2Server, Engine]]:
    """A gateway between a plain client and the server; nothing may be held at the end."""
    async with h2_serving(*script) as provider:
        forward = client_for(provider.url, http2=True, tls=trusting())
        engine = Engine(forward, SHARING)
        server = await serve(Gateway(engine).handle, "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{server.port}")
        try:
            yield client, provider, engine
            await until(lambda: not engine.is_busy and server.busy == 0)
        finally:
            await client.close()
            await server.close(0.0)
            await engine.close()
            await forward.close()


async def ask(client: HttpClient, body: bytes = CALL) -> tuple[int, bytes | None, bytes]:
    reply = await client.request("POST", CHAT, [(b"authorization", b"Bearer k")], body)
    return reply.status, reply.header(b"x-paceline-cache"), await reply.read()


def test_plain_calls_pass_and_are_kept() -> None:
    """The second is a hit, and no header of HTTP/2 reaches the caller."""

    async def main() -> None:
        async with between(JSON_200, COMPLETION) as (client, provider, _):
            assert await ask(client) == (200, b"miss", COMPLETION)
            assert await ask(client) == (200, b"hit", COMPLETION)
            ((head, body),) = provider.requests
            assert (head["authorization"], body) == ("Bearer k", CALL)

    run(main())


def test_streams_pass_as_they_come() -> None:
    """The caller has the first event while the provider still writes, and a second caller the kept stream."""

    async def main() -> None:
        go_on = asyncio.Event()
        async with between(EVENTS_200, EVENTS[0], go_on, *EVENTS[1:]) as (client, _, _):
            reply = await client.request("POST", CHAT, [(b"authorization", b"Bearer k")], STREAMED)
            assert await reply.__anext__() == EVENTS[0]
            go_on.set()
            assert await reply.read() == b"".join(EVENTS[1:])
            assert await ask(client, STREAMED) == (200, b"hit", b"".join(EVENTS))

    run(main())


def test_equal_calls_at_once_are_one_stream() -> None:
    """De-duplication is the same over HTTP/2."""

    async def main() -> None:
        go_on = asyncio.Event()
        async with between(JSON_200, go_on, COMPLETION) as (client, provider, _):
            calls = [asyncio.create_task(ask(client)) for _ in range(20)]
            await until(lambda: len(provider.requests) == 1)
            go_on.set()
            assert {body for _, _, body in await asyncio.gather(*calls)} == {COMPLETION}
            assert len(provider.requests) == 1

    run(main())


@pytest.mark.parametrize("script", [[EVENTS_200, EVENTS[0], STALL], [STALL]], ids=["in the answer", "before it"])
def test_a_caller_who_leaves_ends_the_stream_at_the_provider(script: list[Step]) -> None:
    """Nobody pays for an answer that nobody reads."""

    async def main() -> None:
        async with between(*script) as (client, provider, _):
            call = asyncio.create_task(ask(client, STREAMED))
            await until(lambda: len(provider.requests) == 1)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            await until(lambda: provider.resets == 1)

    run(main())


def test_a_cut_answer_is_a_clean_error() -> None:
    """502, and nothing kept."""

    async def main() -> None:
        async with between(JSON_200, COMPLETION[:50], CUT) as (client, provider, _):
            assert (await ask(client))[0] == 502
            provider.script = [JSON_200, COMPLETION]
            assert await ask(client) == (200, b"miss", COMPLETION)

    run(main())


@pytest.mark.slow
def test_the_command_asks_the_servers_it_is_told_over_http2(tmp_path: Path) -> None:
    """`http2_servers` in the configuration is all there is to do."""

    async def main() -> None:
        async with h2_serving(JSON_200, COMPLETION) as provider:
            ca = tmp_path / "ca.pem"
            ca.write_bytes(authority_pem())
            config = tmp_path / "gateway.toml"
            config.write_text(
                f'[server]\nhttp2_servers = ["{provider.url}"]\n[providers.openai]\nurl = "{provider.url}"\n'
            )
            env = {**os.environ, "SSL_CERT_FILE": str(ca)}
            async with serving("--config", str(config), env=env) as gateway:
                assert await gateway.ask() == (200, COMPLETION)

    run(main())


@pytest.mark.parametrize(
    ("server", "problem"),
    [
        ("http://api.openai.com", "http2_servers wants https URLs"),
        ("https://api.opena1.com", r"has https://api.opena1.com, where no provider or deployment is"),
    ],
)
def test_servers_that_cannot_be_meant_are_refused(tmp_path: Path, server: str, problem: str) -> None:
    """Before serving, with the reason."""
    config = tmp_path / "gateway.toml"
    config.write_text(f'[server]\nhttp2_servers = ["{server}"]\n')
    with pytest.raises(ConfigError, match=problem):
        Sources(config=str(config)).load()
