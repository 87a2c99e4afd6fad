"""The transports over HTTP/2, with a policy and without."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from tests.gateway.builders import CHAT, COMPLETION, EVENTS, SHARING
from tests.wire.builders import run, until
from tests.wire.h2_server import CUT, EVENTS_200, JSON_200, STALL, h2_serving, trusting

from paceline.accelerate.policy import Policy
from paceline.accelerate.transport import AsyncTransport, Transport, TransportSettings

CALL = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}
STREAMED = {**CALL, "stream": True}
both_policies = pytest.mark.parametrize("policy", [Policy(), SHARING], ids=["off", "sharing"])


def _settings() -> TransportSettings:
    return TransportSettings(http2=True, verify=trusting(), trust_env=False)


@both_policies
def test_calls_and_streams(policy: Policy) -> None:
    """An async client gets what the server sent; calls at once share a connection."""

    async def main() -> None:
        async with h2_serving(JSON_200, COMPLETION) as server:
            async with httpx.AsyncClient(transport=AsyncTransport(policy, settings=_settings())) as client:
                answers = await asyncio.gather(
                    *(client.post(server.url + CHAT, json={**CALL, "seed": n}) for n in range(10))
                )
                assert {answer.content for answer in answers} == {COMPLETION}
                server.script = [EVENTS_200, *EVENTS]
                async with client.stream("POST", server.url + CHAT, json=STREAMED) as stream:
                    assert b"".join([line async for line in stream.aiter_raw()]) == b"".join(EVENTS)
                assert server.connections == 1
            await until(lambda: server.open == 0)

    run(main())


@both_policies
def test_a_sync_client(policy: Policy) -> None:
    """The same in a thread."""

    def ask(url: str) -> bytes:
        with httpx.Client(transport=Transport(policy, settings=_settings())) as client:
            return client.post(url + CHAT, json=CALL).content

    async def main() -> None:
        async with h2_serving(JSON_200, COMPLETION) as server:
            assert await asyncio.to_thread(ask, server.url) == COMPLETION

    run(main())


@both_policies
def test_failures_are_the_modules_own(policy: Policy) -> None:
    """A cut answer and a late one; the server hears that the late one is not wanted any more."""

    async def main() -> None:
        transport = AsyncTransport(policy, settings=_settings())
        async with h2_serving(CUT) as server, httpx.AsyncClient(transport=transport, timeout=5) as client:
            with pytest.raises(httpx.RemoteProtocolError, match="it cut the answer"):
                await client.post(server.url + CHAT, json=CALL)
            server.script = [STALL]
            with pytest.raises(httpx.ReadTimeout):
                await client.post(server.url + CHAT, json=CALL, timeout=httpx.Timeout(5, read=0.05))
            await until(lambda: server.resets == 1)

    run(main())


def test_uploads_pass() -> None:
    """A body that is not there at once goes by httpx's own transport, over HTTP/2 as well."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"a"
        yield b"b"

    async def main() -> None:
        transport = AsyncTransport(settings=_settings())
        async with h2_serving(JSON_200, b"{}") as server, httpx.AsyncClient(transport=transport) as client:
            answer = await client.post(server.url + "/v1/files", content=parts())
            assert (answer.http_version, server.requests[0][1]) == ("HTTP/2", b"ab")

    run(main())
