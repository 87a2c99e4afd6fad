"""Kept answers are dropped in every process of a running gateway, by whoever may."""

import asyncio
import json
import signal

import pytest
import uvloop
from tests.gateway.builders import CACHING, COMPLETION, JSON
from tests.gateway.keyed import KeyedGateway, bearer, keyed, make
from tests.gateway.serving import Serving, serving
from tests.wire.builders import ok, run, scripted

from paceline.cli import main as cli
from paceline.gateway.invalidation import INVALIDATE

_TYPE = (b"content-type", b"application/json")


async def drop(gateway: Serving, body: object, *headers: tuple[bytes, bytes]) -> tuple[int, dict[str, object]]:
    reply = await gateway.client.request("POST", INVALIDATE, [_TYPE, *headers], json.dumps(body).encode())
    return reply.status, json.loads(await reply.read())


async def outcomes(gateway: Serving, count: int) -> list[str]:
    """How that many calls on connections of their own were answered: the kernel spreads them over the workers."""
    seen = []
    for _ in range(count):
        client = type(gateway.client)(gateway.url)
        reply = await client.request(
            "POST",
            "/v1/chat/completions",
            [(b"x-paceline-tags", b"faq")],
            b'{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}',
        )
        seen.append((reply.header(b"x-paceline-cache") or b"").decode())
        await reply.read()
        await client.close()
    return seen


@pytest.mark.slow
def test_every_worker_of_a_memory_only_gateway_drops_them() -> None:
    """One request reaches all processes, and nobody gives the old answer again."""

    async def main() -> None:
        async with (
            scripted(ok(COMPLETION, JSON)) as upstream,
            serving("--upstream", upstream.url, "--workers", "2") as gateway,
        ):
            while (await outcomes(gateway, 20)).count("miss"):
                pass  # until each worker has it
            assert len(upstream.requests) == 2
            assert await drop(gateway, {"tags": ["other"]}) == (200, {"dropped": 0, "processes": 2})
            assert set(await outcomes(gateway, 20)) == {"hit"}
            assert await drop(gateway, {"tags": ["faq"]}) == (200, {"dropped": 2, "processes": 2})
            assert (await outcomes(gateway, 20)).count("miss") == len(upstream.requests) - 2 > 0
            assert (await gateway.stop(signal.SIGTERM))[0] == 0

    uvloop.run(asyncio.wait_for(main(), 60))


async def dropped(gateway: KeyedGateway, key: str, body: object) -> tuple[int, bytes]:
    return await gateway.send("POST", INVALIDATE, bearer(key), _TYPE, body=json.dumps(body).encode())


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "say what to drop"),
        ({"tag": ["a"]}, "unknown field `tag`"),
        ({"tags": "a"}, "Expected `array`, got `str`"),
        ({"tenant": "acme"}, "tenants have names only where callers have keys"),
        ([], "Expected `object`"),
    ],
)
def test_what_cannot_be_meant_is_refused(body: object, problem: str) -> None:
    """400, and why."""

    async def main() -> None:
        async with keyed(None, policy=CACHING) as gateway:
            status, said = await dropped(gateway, "", body)
            assert status == 400
            assert problem in json.loads(said)["error"]["message"]

    run(main())


def test_a_web_page_elsewhere_cannot_ask_for_it() -> None:
    """What a browser sends to another site without asking it first is refused, and so is reading."""

    async def main() -> None:
        async with keyed(None, policy=CACHING) as gateway:
            plain = (b"content-type", b"text/plain")
            assert (await gateway.send("POST", INVALIDATE, plain, body=b'{"everything": true}'))[0] == 415
            assert (await gateway.send("GET", INVALIDATE))[0] == 405

    run(main())


def test_a_key_drops_its_own_tenants_answers_and_an_operator_all() -> None:
    """A caller cannot empty another's cache, and a monitor changes nothing."""
    (alice, a), (bob, b) = make("alice"), make("bob")
    (watch, w), (boss, o) = make("watch", role="monitor"), make("boss", role="operator")

    async def main() -> None:
        async with keyed([a, b, w, o], ok(COMPLETION, JSON), policy=CACHING) as gateway:

            async def kept() -> list[str]:
                return [(await gateway.ask(key))[1] for key in (alice, bob)]

            await kept()
            assert (await dropped(gateway, watch, {"everything": True}))[0] == 403
            assert (await dropped(gateway, "pl_nobody", {"everything": True}))[0] == 401
            assert (await dropped(gateway, alice, {"tenant": "bob"}))[0] == 400
            assert await kept() == ["hit", "hit"]
            assert json.loads((await dropped(gateway, alice, {"everything": True}))[1])["dropped"] == 1
            assert await kept() == ["miss", "hit"]
            assert json.loads((await dropped(gateway, boss, {"tenant": "bob"}))[1])["dropped"] == 1
            assert await kept() == ["hit", "miss"]
            assert json.loads((await dropped(gateway, boss, {"everything": True}))[1])["dropped"] == 2
            assert (await gateway.ask(boss))[0] == 403
            assert (await gateway.send("GET", "/-/costs", bearer(boss)))[0] == 200

    run(main())


@pytest.mark.slow
def test_the_command_asks_a_running_gateway(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`paceline cache invalidate --gateway`; with keys it needs an operator's."""
    boss, o = make("boss", role="operator")

    async def main() -> None:
        async with keyed([o], policy=CACHING) as gateway:
            url = gateway.client.base_url
            tag = ["cache", "invalidate", "--gateway", url, "--tag", "faq"]
            assert await asyncio.to_thread(cli, tag) == 2
            assert "refuses (401)" in capsys.readouterr().err
            monkeypatch.setenv("BOSS", boss)
            assert await asyncio.to_thread(cli, [*tag, "--key-env", "BOSS"]) == 0
            assert capsys.readouterr().out == "0 answers dropped in 1 process of the gateway\n"
            assert await asyncio.to_thread(cli, ["cache", "clear", "--gateway", url, "--key-env", "NONE"]) == 2
            assert "NONE, which is not set" in capsys.readouterr().err

    run(main())
